"""Trains as the arguments say, in 2-D, and prints the most memory this process held, in bytes."""

import resource
import sys

from hydra import compose, initialize_config_dir

from attnmosaic.config import conf_dir, register
from attnmosaic.train import train

if __name__ == "__main__":
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", sys.argv[1:])
    train(config)
    print(f"peak {1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}")
