"""Sources, one adapter a file: each yields records."""
