"""Reads runs on the disk: one run's folder, all runs below a folder, and what a run did not learn. Imports no torch."""
