"""Benchmarks: the speed of the package compared with other programs (``python -m benchmarks``, ``make bench``)."""
