"""Runs a command while another process keeps one core busy: ``python -m benchmarks.busy python -m pytest``."""

import subprocess
import sys

from benchmarks.machine import busy_core

if __name__ == "__main__":
    with busy_core():
        code = subprocess.run(sys.argv[1:]).returncode
    sys.exit(code)
