"""Objectives: one family a file; `pretrain.objectives.base.OBJECTIVES` imports one when it is asked for."""
