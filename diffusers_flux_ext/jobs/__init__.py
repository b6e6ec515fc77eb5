"""Jobs: one typed description of a call, for the command line, for servers and for forms.

Needs `pip install "diffusers-flux-ext[jobs]"`.
"""

from .building import BuiltCall, build_call
from .checking import check_job
from .errors import JobCancelled, JobError, Problem
from .files import JobFiles
from .from_call import job_from_call
from .job import Job
from .joining import can_join, joined
from .metadata import save_result_image
from .reading import read_job, write_job
from .runner import JobResult, JobRunner
from .schema import job_schema
from .steps import StepInfo


__all__ = [
    "BuiltCall",
    "Job",
    "JobCancelled",
    "JobError",
    "JobFiles",
    "JobResult",
    "JobRunner",
    "Problem",
    "StepInfo",
    "build_call",
    "can_join",
    "check_job",
    "job_from_call",
    "job_schema",
    "joined",
    "read_job",
    "save_result_image",
    "write_job",
]
