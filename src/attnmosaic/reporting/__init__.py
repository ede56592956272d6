"""Writes the report: one HTML file that shows a run or a sweep, from files on the disk."""
