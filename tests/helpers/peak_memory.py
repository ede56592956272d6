"""Trains with the overrides in its arguments, and prints the peak memory of its process in bytes."""

import re
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir

from attnmosaic.config.schema import conf_dir, register
from attnmosaic.train import train

if __name__ == "__main__":
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", sys.argv[1:])
    train(config)
    # Not from `getrusage`, which includes the peak memory of the parent process.
    most = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), flags=re.M)
    print(f"peak {1024 * int(most[0])}")
