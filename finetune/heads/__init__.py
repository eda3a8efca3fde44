"""Heads: one plug-in a file; `finetune.heads.base.HEADS` imports one when it is asked for."""
