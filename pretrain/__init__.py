"""What learns: encoders, objectives, the engine and the loop."""
