"""Runs a job of a sweep on a node of Slurm."""

import os
import sys
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from attnmosaic.core.text import use_substitutes
from attnmosaic.sweeps.packed_job import PackedJob


class OnNode(PackedJob):
    """A job that Slurm starts, and starts again whenever it was put back into the queue.

    It always gets the same run folder, so the run there resumes from its newest checkpoint.
    """

    def __call__(self) -> JobReturn:
        import submitit
        from submitit.core.utils import cloudpickle_dump, temporary_save_path

        node = submitit.JobEnvironment()
        for file in (node.paths.result_pickle, node.paths.submitted_pickle):  # a killed start's would stop submitit
            file.with_suffix(f"{file.suffix}.save_tmp").unlink(missing_ok=True)
        use_substitutes()
        os.environ.update(self.environ | os.environ)
        done = self.run(job_id=node.job_id)
        if done.status == JobStatus.FAILED:
            with temporary_save_path(node.paths.result_pickle) as file:
                cloudpickle_dump(("success", done), file)
            sys.exit(1)  # so that Slurm calls it failed, too
        return done

    def checkpoint(self) -> Any:
        """Returns what Slurm is to start when it has ended this; called by submitit's signal handler."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)
