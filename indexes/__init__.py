"""Index kinds, segments and the on-disk format: vectors in, rows and scores out; no encoder is known here."""
