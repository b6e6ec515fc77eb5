"""Jobs: one typed description of a call, for the command line, for servers and for forms.

Needs `pip install "diffusers-flux-ext[jobs]"`.
"""

from .errors import JobCancelled, JobError, Problem
from .files import JobFiles
from .job import Job
from .metadata import save_result_image
from .reading import read_job, write_job
from .schema import job_schema


__all__ = [
    "Job",
    "JobCancelled",
    "JobError",
    "JobFiles",
    "Problem",
    "job_schema",
    "read_job",
    "save_result_image",
    "write_job",
]
