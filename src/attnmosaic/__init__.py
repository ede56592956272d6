"""Where/what attention on mosaics: data, networks, stage-wise training and evaluation."""

import os

__version__ = "0.1.0"

# By default, waiting threads of torch spin for milliseconds. If another process keeps a core busy, the spinning threads
# prevent the thread that they wait for from running (docs/performance.md). The variable must be set before torch is
# imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
