"""Runs on the disk: reading one, finding them, and what they show. Imports no torch."""
