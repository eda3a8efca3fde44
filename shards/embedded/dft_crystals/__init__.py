"""Package data of ``embedded:dft_crystals``; read it with `shards.embedded.load`."""
