"""Estimators: predictors without gradient descent, over vectors that are already there; one plug-in a file."""
