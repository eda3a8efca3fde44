"""What a run would take on a cluster: bytes and seconds of a step from measured constants; docs/scaling.md explains."""
