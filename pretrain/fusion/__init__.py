"""Fusions: one idea a file; `pretrain.fusion.base.FUSIONS` imports one when it is asked for."""
