"""Job files for schedulers and launchers."""
