"""Runs a job of a sweep on a Slurm node."""

import os
import sys
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from attnmosaic.core.text import use_substitutes
from attnmosaic.sweeps.packed_job import PackedJob


class OnNode(PackedJob):
    """A job that Slurm starts, and starts again after each requeue.

    Every start uses the same run folder, so the run resumes from its newest checkpoint.
    """

    def __call__(self) -> JobReturn:
        import submitit
        from submitit.core.utils import cloudpickle_dump, temporary_save_path

        slurm_job = submitit.JobEnvironment()
        # Temporary files of an earlier start that was killed would stop submitit.
        for file in (slurm_job.paths.result_pickle, slurm_job.paths.submitted_pickle):
            file.with_suffix(f"{file.suffix}.save_tmp").unlink(missing_ok=True)
        use_substitutes()
        os.environ.update(self.environ | os.environ)
        job_return = self.run(job_id=slurm_job.job_id)
        if job_return.status == JobStatus.FAILED:
            with temporary_save_path(slurm_job.paths.result_pickle) as file:
                cloudpickle_dump(("success", job_return), file)
            sys.exit(1)  # so that Slurm also marks the job as failed
        return job_return

    def checkpoint(self) -> Any:
        """Returns the job that Slurm starts after a requeue; submitit's signal handler calls this."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)
