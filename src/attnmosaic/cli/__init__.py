"""Code that all commands share: running a command, explaining user errors, showing progress. Imports no torch."""
