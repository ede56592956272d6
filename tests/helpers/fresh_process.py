"""Runs commands in a fresh process, and finds what they import."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

LARGE = ("torch", "torchvision", "pytorch_lightning")

_PROGRAM = """
import contextlib, importlib, io, json, sys
command, heavy, given = json.loads(sys.argv[1])
main = importlib.import_module(f"attnmosaic.{command}").main
answered = []
for arguments in given:
    sys.argv = [f"attnmosaic/{command}.py", *arguments]
    err = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    answered.append([code, err.getvalue(), [name for name in heavy if name in sys.modules]])
print(json.dumps(answered))
"""


def answers(
    command: str, given: Iterable[tuple[str, ...]], folder: Path, heavy: tuple[str, ...] = LARGE
) -> list[tuple[int, str, list[str]]]:
    """Runs a command several times, all in one fresh process.

    Args:
        command: its module.
        given: the arguments of each time.
        folder: where it runs.
        heavy: modules to look for.

    Returns:
        Each time's exit code, its standard error, and which of the modules had been imported by then.
    """
    asked = json.dumps([command, heavy, [*map(list, given)]])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, asked], cwd=folder, capture_output=True, text=True, check=True, env=os.environ
    )
    return [(code, err, imported) for code, err, imported in json.loads(done.stdout.splitlines()[-1])]
