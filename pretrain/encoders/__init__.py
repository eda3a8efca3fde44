"""Encoders: one plug-in a file; `pretrain.encoders.base.ENCODERS` imports one when it is asked for."""
