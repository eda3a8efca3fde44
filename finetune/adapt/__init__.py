"""Adaptations: how much of a pretrained model is trained for a target, one plug-in a file."""
