"""What a command answers in a process of its own, and what it imported by then."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

LARGE = ("torch", "torchvision", "pytorch_lightning")

_PROGRAM = """
import contextlib, importlib, io, json, sys
door, heavy, given = json.loads(sys.argv[1])
main = importlib.import_module(f"attnmosaic.{door}").main
told = []
for arguments in given:
    sys.argv = [f"attnmosaic/{door}.py", *arguments]
    err = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    told.append([code, err.getvalue(), [name for name in heavy if name in sys.modules]])
print(json.dumps(told))
"""


def answers(
    door: str, given: Iterable[tuple[str, ...]], folder: Path, heavy: tuple[str, ...] = LARGE
) -> list[tuple[int, str, list[str]]]:
    """Runs a command several times, all in one fresh process.

    Args:
        door: its module.
        given: the arguments of each time.
        folder: where it runs.
        heavy: modules to look for.

    Returns:
        Each time's exit code, what it said on standard error, and which of the modules had been imported by then.
    """
    asked = json.dumps([door, heavy, [*map(list, given)]])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, asked], cwd=folder, capture_output=True, text=True, check=True, env=os.environ
    )
    return [(code, err, imported) for code, err, imported in json.loads(done.stdout.splitlines()[-1])]
