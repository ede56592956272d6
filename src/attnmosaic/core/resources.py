"""Finds the memory and the GPUs that this process may use, and the threads that its user asks for."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path


def asked_threads(compute_threads: object, environ: Mapping[str, str]) -> int | None:
    """Returns the number of threads the user asks for, with ``compute.threads`` or ``OMP_NUM_THREADS``, if any."""
    for asked in (compute_threads, environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()):
        if str(asked).isdecimal() and int(str(asked)) > 0:
            return int(str(asked))
    return None


def visible_gpus(environ: Mapping[str, str], dev: Path = Path("/dev")) -> list[str]:
    """Returns the names of the NVIDIA GPUs that torch would find, as ``CUDA_VISIBLE_DEVICES`` has them."""
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i, _ in enumerate(dev.glob("nvidia[0-9]*"))]
    return [*takewhile(lambda name: name not in ("", "-1"), map(str.strip, named.split(",")))]


def free_gb(root: Path = Path("/")) -> float | None:
    """Returns the free memory in GB, within the limits of this process's control groups; None but on Linux."""
    try:
        memory, groups = ((root / "proc" / name).read_text(encoding="utf-8") for name in ("meminfo", "self/cgroup"))
    except OSError:
        return None
    left = [int(kilobytes) * 1024 for kilobytes in re.findall(r"^MemAvailable:\s+(\d+) kB", memory, flags=re.M)]
    left += _left(root / "sys/fs/cgroup", "", groups, "memory.max", "memory.current", "inactive_file")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    left += _left(root / "sys/fs/cgroup/memory", "memory", groups, *v1)
    return max(0, min(left)) / 1e9 if left else None


def _left(tree: Path, controller: str, groups: str, limit: str, usage: str, cached: str) -> Iterator[int]:
    """Yields what is left of each limit from this process's group up to the top of the tree."""
    for path in re.findall(rf"^\d+:{controller}:/(.*)$", groups, flags=re.M):
        for folder in (tree / path, *(tree / path).parents):
            # A container may not see the group it is in, only the top; and a limit may be the word "max".
            with contextlib.suppress(OSError, ValueError):
                used = int((folder / usage).read_text(encoding="utf-8"))
                statistics = (folder / "memory.stat").read_text(encoding="utf-8")
                given_back = re.findall(rf"^{cached} (\d+)$", statistics, flags=re.M)
                yield int((folder / limit).read_text(encoding="utf-8")) - used + sum(map(int, given_back))
            if folder == tree:
                break
