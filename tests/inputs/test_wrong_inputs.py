"""Wrong arguments are refused by name before the first step, those of every pipeline and condition.

The table `accepted_inputs.json` holds the values that are taken, by class and argument. It is reviewed by hand;
`python -m benchmarks.wrong_inputs --update` writes it anew.
"""

import pytest

from benchmarks.support.wrong_inputs import table
from benchmarks.support.wrong_inputs.table import is_own, read_accepted
from benchmarks.support.wrong_inputs.trials import Trial, all_trials, attempt, sample
from tests.fixtures.sampling import share_of


SEED, COUNT, GROUPS = 0, share_of(400), 8


@pytest.fixture(scope="module")
def accepted():
    return read_accepted()


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_each_is_taken_as_listed_or_refused_by_name(accepted, group):
    wrong = []
    for trial in sample(COUNT, SEED)[group::GROUPS]:
        result = attempt(trial)
        allowed = ("accepted",) if trial in accepted else ("refused",)
        allowed = allowed if is_own(trial) else ("accepted", "refused")
        if result.outcome not in allowed:
            wrong.append(f"{trial} is to be {allowed}, but it is {result.outcome}: {result.message}")
    assert not wrong, "\n".join([*wrong, "Look at `python -m benchmarks.wrong_inputs --subject <class>`."])


def test_the_table_holds_only_what_is_tried(accepted):
    assert accepted <= set(all_trials())
    assert len(accepted) > 1000


def test_writing_one_subject_keeps_the_others(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    path.write_text('{"Fill": {"mask": ["a box"]}, "Flex": {"image": ["an image"], "mask": ["a box"]}}')
    monkeypatch.setattr(table, "PATH", path)
    tried = [Trial("Flex", "image", value) for value in ("an image", "a number", "a list")]
    table.write_accepted(tried, tried[1:])
    assert read_accepted() == {Trial("Fill", "mask", "a box"), *tried[1:]}
