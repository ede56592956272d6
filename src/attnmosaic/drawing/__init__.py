"""Pictures, drawn from what lies on the disk. Nothing here imports torch; matplotlib only when a figure is drawn."""
