"""Finds the free memory and GPUs for this process, and the number of threads that the user requests."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path


def requested_threads(compute_threads: object, environ: Mapping[str, str]) -> int | None:
    """Returns the number of threads from ``compute.threads`` or else ``OMP_NUM_THREADS``; None if neither is set."""
    for threads in (compute_threads, environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()):
        if str(threads).isdecimal() and int(str(threads)) > 0:
            return int(str(threads))
    return None


def visible_gpus(environ: Mapping[str, str], dev: Path = Path("/dev")) -> list[str]:
    """Returns the NVIDIA GPUs that torch would find, named as in ``CUDA_VISIBLE_DEVICES``."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(i) for i, _ in enumerate(dev.glob("nvidia[0-9]*"))]
    return [*takewhile(lambda name: name not in ("", "-1"), map(str.strip, visible.split(",")))]


def free_gb(root: Path = Path("/")) -> float | None:
    """Returns the free memory in GB under the limits of this process's control groups; None if it is not on Linux."""
    try:
        memory, groups = ((root / "proc" / name).read_text(encoding="utf-8") for name in ("meminfo", "self/cgroup"))
    except OSError:
        return None
    free_bytes = [int(kilobytes) * 1024 for kilobytes in re.findall(r"^MemAvailable:\s+(\d+) kB", memory, flags=re.M)]
    free_bytes += _free_in_groups(root / "sys/fs/cgroup", "", groups, "memory.max", "memory.current", "inactive_file")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    free_bytes += _free_in_groups(root / "sys/fs/cgroup/memory", "memory", groups, *v1)
    return max(0, min(free_bytes)) / 1e9 if free_bytes else None


def _free_in_groups(tree: Path, controller: str, groups: str, limit: str, usage: str, cached: str) -> Iterator[int]:
    """Yields the free bytes under each memory limit, from this process's control group up to the root."""
    for path in re.findall(rf"^\d+:{controller}:/(.*)$", groups, flags=re.M):
        for folder in (tree / path, *(tree / path).parents):
            # In a container, only the root group may be visible. A limit can be the word "max".
            with contextlib.suppress(OSError, ValueError):
                used = int((folder / usage).read_text(encoding="utf-8"))
                statistics = (folder / "memory.stat").read_text(encoding="utf-8")
                reclaimable = re.findall(rf"^{cached} (\d+)$", statistics, flags=re.M)
                yield int((folder / limit).read_text(encoding="utf-8")) - used + sum(map(int, reclaimable))
            if folder == tree:
                break
