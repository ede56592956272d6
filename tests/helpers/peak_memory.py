"""Trains as the arguments say, in 2-D, and prints the most memory this process held, in bytes."""

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
    # Not `getrusage`: that begins with the most that the process held which started this one.
    most = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), flags=re.M)
    print(f"peak {1024 * int(most[0])}")
