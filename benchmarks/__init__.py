"""How fast, and how much faster than what else one could run: ``python -m benchmarks`` or ``make bench``."""
