"""How it is started and seen: the command line and the scripts that launchers start."""
