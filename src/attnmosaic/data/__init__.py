"""Pools, mosaics and data modules. Knows nothing of networks or training."""
