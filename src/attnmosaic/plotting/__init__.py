"""Plots figures from the files of a run. No module imports torch; matplotlib is imported when a figure is plotted."""
