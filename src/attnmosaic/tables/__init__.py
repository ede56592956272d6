"""Builds and prints tables of published numbers and the metrics of runs on the disk. Imports no torch."""
