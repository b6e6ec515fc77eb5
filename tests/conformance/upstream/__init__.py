"""diffusers' own tests of FLUX.1, run with the classes of this package in place of the stock ones.

The tests are not part of diffusers' wheel. They run when `DIFFUSERS_SOURCE` names a checkout of diffusers, at the tag
of the installed version or near it:

    DIFFUSERS_SOURCE=../diffusers python -m pytest tests/conformance/upstream

Every test runs with the stock class first. Ours has to do no worse: what passes with the stock class passes with ours,
save for what `differences.py` lists with its reason. `conftest.py` compares, and prints a table at the end.
"""
