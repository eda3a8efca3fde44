"""File formats of strangers, read by default-deny: bounded in size and memory, and nothing in a file is run."""
