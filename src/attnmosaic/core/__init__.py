"""Files, text, signals, errors and machine facts that every other package uses. Imports no torch."""
