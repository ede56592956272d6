"""Figures, drawn from files on the disk. Nothing here imports torch; matplotlib only when a figure is drawn."""
