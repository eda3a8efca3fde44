"""Runs over several hosts: who they are, what they have, and the processes there."""
