"""The published scripts' calls, with the same text: as it is with the reference, after one changed line with ours."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.support.diffsynth.reference import reference_loader
from benchmarks.support.reference.insert_anything import opencv
from tests.fixtures.diffsynth_scripts import (
    ScriptRun,
    TheirFaces,
    changed,
    faces,
    run_script,
    watch_ours,
    watch_reference,
)


SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.py"))
TOLERANCE = 1e-3
DIFFERENCES = {
    "controlnet_upscaler": (
        "the reference's tiles are of image pixels in its encoder, of latent cells in its decoder and transformer; "
        "smaller images than a tile raise, and conditions are dropped in tiles of the transformer",
        lambda text: text.replace("tiled=True", "tiled=False"),
    ),
}
"""By script, why the images differ, and the change after which the reference draws ours."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_draws_what_the_reference_draws(script, downloaded, monkeypatch, tmp_path):
    text = script.read_text()
    assert changed(text) != text
    ours, theirs = ScriptRun(), ScriptRun()
    with monkeypatch.context() as patched, faces(patched):
        watch_ours(patched, ours)
        run_script(changed(text), tmp_path, ours)
    with monkeypatch.context() as patched, reference_loader(downloaded, patched, TheirFaces()), opencv():
        watch_reference(patched, theirs)
        _, change = DIFFERENCES.get(script.stem, ("", str))
        run_script(change(text), tmp_path, theirs)
    assert len(ours.floats) == len(theirs.floats) > 0
    for one, other in zip(ours.floats, theirs.floats):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)
    assert ours.images.keys() == theirs.images.keys()
    for name, image in ours.images.items():
        assert np.abs(image.astype(int) - theirs.images[name]).max() <= 1, name
