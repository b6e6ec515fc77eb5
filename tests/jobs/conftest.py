"""Inputs of jobs, written once."""

import pytest

from diffusers_flux_ext.jobs import JobFiles
from tests.fixtures.jobs import write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def files(folder):
    return JobFiles(folder)
