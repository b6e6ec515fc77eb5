"""Drawing jobs, with a look at the model's configs before it is loaded."""

from __future__ import annotations

import logging
import os
from typing import Any

from ..checkpoints.pipeline_folders import check_pipeline_folder
from ..jobs import JobFiles, JobResult, JobRunner
from ..tiny import named_model


logger = logging.getLogger(__name__)


class CheckedRunner(JobRunner):
    """Runs jobs as [`JobRunner`] does, but refuses folders whose configs are broken and may ask for any memory."""

    _has_warned = False

    def run(self, job: Any, files: JobFiles | None = None, on_step: Any = None) -> JobResult:
        """See [`JobRunner.run`]; raises a `ValueError` for a broken config."""
        if self.device.type == "cpu" and job.memory.offload != "none" and not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"`offload={job.memory.offload}` has no effect without an accelerator: everything runs on the CPU."
            )
        path = named_model((files or JobFiles()).source(job.model.path))
        if os.path.isdir(path):
            check_pipeline_folder(path)
        return super().run(job, files, on_step)
