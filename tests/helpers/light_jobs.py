"""Functions for jobs of a sweep that import no heavy packages."""

import logging
import os
import sys

from omegaconf import DictConfig


def answer(config: DictConfig) -> float:
    """Returns ten times the seed; ends its process if the seed is 2."""
    if config.seed.all == 2:
        sys.exit(3)
    return 10.0 * config.seed.all


def speak(config: DictConfig) -> float:
    """Returns the value of `answer`; prints to standard output, to file descriptor 2 and to a logger."""
    seed = config.seed.all
    print(f"printed by {seed}")
    os.write(2, f"  0%\r100% of {seed}\n".encode())
    logging.getLogger("a.users").warning("warned by %d,\nin two lines", seed)
    return answer(config)


def speak_of_names(config: DictConfig) -> float:
    """Returns the value of `answer`; prints the name of the run."""
    print(f"printed {config.name}")
    return answer(config)


def gpus(config: DictConfig) -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]
