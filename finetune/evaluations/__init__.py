"""Evaluations: one plug-in a file; `finetune.evaluations.base.EVALUATIONS` imports one when it is asked for."""
