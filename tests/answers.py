"""A job of a sweep that imports nothing heavy."""

import sys

from omegaconf import DictConfig


def answer(config: DictConfig) -> float:
    """Returns ten times the seed, or ends its process where the seed is 2."""
    if config.seed.all == 2:
        sys.exit(3)
    return 10.0 * config.seed.all
