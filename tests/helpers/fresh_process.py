"""Runs commands in a new process, and reports the modules that they import."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

LARGE = ("torch", "torchvision", "pytorch_lightning")

_PROGRAM = """
import contextlib, importlib, io, json, sys
command, heavy, calls = json.loads(sys.argv[1])
main = importlib.import_module(f"attnmosaic.{command}").main
results = []
for arguments in calls:
    sys.argv = [f"attnmosaic/{command}.py", *arguments]
    err = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    results.append([code, err.getvalue(), [name for name in heavy if name in sys.modules]])
print(json.dumps(results))
"""


def answers(
    command: str, calls: Iterable[tuple[str, ...]], folder: Path, heavy: tuple[str, ...] = LARGE
) -> list[tuple[int, str, list[str]]]:
    """Runs a command several times in one new process.

    Args:
        command: name of the command's module.
        calls: arguments of each call.
        folder: working directory.
        heavy: names of modules to check.

    Returns:
        For each call its exit code, its standard error, and those modules in ``heavy`` that were imported by then.
    """
    request = json.dumps([command, heavy, [*map(list, calls)]])
    process = subprocess.run(
        [sys.executable, "-c", _PROGRAM, request],
        cwd=folder, capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    return [(code, err, imported) for code, err, imported in json.loads(process.stdout.splitlines()[-1])]
