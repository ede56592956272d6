"""Sweeps: plans, launches, monitors and displays their jobs. Imports no torch."""
