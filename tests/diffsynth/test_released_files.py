"""The reference's fingerprints of the released files come out of names and shapes alone, and our readers open them."""

import pytest

from benchmarks.diffsynth_files import open_file, reference_entries
from benchmarks.support.diffsynth.released import RELEASED
from tests.fixtures.documentation import ROOT


PAGE = (ROOT / "docs" / "diffsynth_files.md").read_text()


def test_every_entry_of_the_reference_is_there():
    assert reference_entries().keys() == RELEASED.keys()
    assert all(f"`{fingerprint}`" in PAGE for fingerprint in RELEASED)


@pytest.mark.slow
@pytest.mark.parametrize("fingerprint", RELEASED, ids=lambda fingerprint: RELEASED[fingerprint][0])
def test_a_released_file(fingerprint):
    outcome = open_file(fingerprint)
    assert outcome.fingerprint == fingerprint
    assert outcome.left_over == 0
    assert f"| `{fingerprint}` | {outcome.tensors} | {', '.join(outcome.kinds)} |" in PAGE
