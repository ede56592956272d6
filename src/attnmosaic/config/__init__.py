"""The config: its schema, every rule it is checked by, and which of its keys decide numbers. Imports no torch."""
