"""Random combinations of methods agree with the reference's loop.

`FLUX_EXT_COMBINATIONS=250` runs that many; `python -m benchmarks.random_combinations` reports on them.
"""

import os

import pytest

from benchmarks.support.parity.combinations import (
    BASES,
    EXCLUDED,
    METHODS,
    OPTIONS,
    TOLERANCE,
    combination,
    difference,
)


COUNT = int(os.environ.get("FLUX_EXT_COMBINATIONS", 20))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(COUNT))
def test_a_combination(seed):
    call = combination(seed)
    assert difference(call) <= TOLERANCE, call.title


def test_every_method_beside_others_is_among_them():
    drawn = [{call.base, *call.names} for call in map(combination, range(COUNT))]
    assert set().union(*drawn) == {*BASES, *METHODS, *OPTIONS}
    appending, controlled = (
        {"redux", "attributes", "lora embedding"},
        [names for names in drawn if "controlnets" in names],
    )
    assert set().union(*controlled) >= appending
    assert not any(pair <= names for pair in EXCLUDED for names in drawn)
