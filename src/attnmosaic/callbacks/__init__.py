"""Callbacks that write files, plot figures and show progress while a run trains."""
