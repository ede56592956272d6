"""The report: one HTML file that shows a run or a sweep, from the files on the disk."""
