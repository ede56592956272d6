"""The config: its schema, its checks, and which of its keys decide a run's numbers. Imports no torch."""
