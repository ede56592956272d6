"""The report: one HTML file that shows a run or a sweep, from what lies on the disk. Nothing here imports torch."""
