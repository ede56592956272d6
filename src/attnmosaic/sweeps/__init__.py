"""Sweeps: their jobs planned, launched, monitored and displayed. Imports no torch."""
