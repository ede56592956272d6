"""Files, text, signals, errors and resources of the machine, for all other packages. Imports no torch."""
