"""Where/what attention on mosaics: data, networks, stage-wise training and measures."""

import os

__version__ = "0.1.0"

# Threads of torch that wait for each other spin for milliseconds, unless this is set before torch is imported: where
# another process keeps a core busy, the thread that is waited for does not run meanwhile (docs/performance.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
