"""The sections, most valuable first."""

from benchmarks.gpu.rows import Section
from benchmarks.gpu.sections.budgets import BUDGETS
from benchmarks.gpu.sections.caches import CACHES
from benchmarks.gpu.sections.eligen import ELIGEN
from benchmarks.gpu.sections.methods import METHODS
from benchmarks.gpu.sections.plain import PLAIN
from benchmarks.gpu.sections.storage import STORAGE
from benchmarks.gpu.sections.tests import TESTS
from benchmarks.gpu.sections.training import TRAINING
from benchmarks.gpu.sections.vae import VAE


SECTIONS: tuple[Section, ...] = (TESTS, ELIGEN, PLAIN, BUDGETS, STORAGE, CACHES, VAE, TRAINING, METHODS)


def section_named(name: str) -> Section:
    """Return a section by its name or its letter.

    Args:
        name (`str`): Such as `"eligen"` or `"b"`.

    Returns:
        `Section`

    Raises:
        ValueError: if there is none.
    """
    for section in SECTIONS:
        if name in (section.letter, section.name):
            return section
    known = ", ".join(f"{section.letter} or {section.name}" for section in SECTIONS)
    raise ValueError(f"There is no section {name!r}; expected {known}.")
