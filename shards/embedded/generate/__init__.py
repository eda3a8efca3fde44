"""The generator of ``embedded:dft_crystals``: prototypes -> CHGNet cells -> GPAW electronic structure -> files.

Run it with ``python -m shards.embedded.generate --out DIR``. Nothing here is needed to *read* the data set.
Heavy packages (ase, chgnet, gpaw, robocrys) are imported inside the functions that use them.
"""
