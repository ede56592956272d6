"""One more process of a run: ``python -m attnmosaic.training.rank``, started by `Ranks` and by nobody else."""

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import warnings
from pathlib import Path

from attnmosaic.core.internals import import_lightning
from attnmosaic.training.ranks import Place


def main() -> None:
    """Takes the run's config from the first line of standard input, trains along, and writes no file.

    What goes wrong is printed; the exit code is then 1. It ends when standard input does, and no sooner.
    """
    # What a terminal or Slurm sends to all processes is for the first one to answer, which ends this one, too.
    deaf = ["SIGINT", "SIGHUP", *(["SIGTERM", "SIGUSR1", "SIGUSR2"] if "SUBMITIT_EXECUTOR" in os.environ else [])]
    for name in deaf:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    warnings.simplefilter("ignore")  # the process that writes says it all, too
    logging.disable(logging.WARNING)
    import_lightning()
    from attnmosaic.cli.command import describe
    from attnmosaic.training.checkpointing import read_saved
    from attnmosaic.training.fit import fit
    from attnmosaic.training.runtime import job_globals, threads_for

    line = sys.stdin.readline()
    if not line:
        return
    told = json.loads(line)
    parent = threading.Thread(target=_end_with_parent, args=(Path(told["place"]["meeting"]).parent,), daemon=True)
    parent.start()
    config, place = told["config"], Place(**told["place"])
    try:
        checkpoint = None if config["ckpt_path"] is None else read_saved(config["ckpt_path"])
        threads = threads_for(config["compute"]["threads"], checkpoint)
        with job_globals(config["seed"]["init"], threads, config["compute"]["matmul_precision"], place.count):
            fit(config, checkpoint, place)
    except Exception as error:
        with contextlib.suppress(BrokenPipeError):  # nobody reads it if the first process has ended
            print(describe(error), flush=True)
        parent.join(timeout=0.5)  # if it is that one which is gone, there is something to clear away
        os._exit(1)
    parent.join()  # which may have figures to draw


def _end_with_parent(folder: Path) -> None:
    sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)  # whoever made it may have been killed
    os._exit(1)


if __name__ == "__main__":
    main()
