"""Files of public leaderboards, written from predictions and validated against their documented formats."""
