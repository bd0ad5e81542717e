"""The table of algorithms as data: the choices of every cell, rows, presets, and what goes with what. No torch."""
