"""Pools of patches, mosaics and data modules. Does not depend on networks or training."""
