"""Insert-Anything against the reference: its picture processing at the released size, and whole calls."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.support.reference import reference_pair
from benchmarks.support.reference.insert_anything import opencv, reference_unit
from benchmarks.support.reference.redux import add_redux
from benchmarks.support.tiny.insert_anything import pictures, region
from benchmarks.support.tiny.ip_adapter import picture
from benchmarks.support.tiny.redux import tiny_redux_embedder, tiny_redux_vision
from diffusers_flux_ext import FluxFlowMatchScheduler, FluxInsertAnythingPipeline
from diffusers_flux_ext.canvas import pack_latents
from diffusers_flux_ext.methods.insert_anything.diptych import make_diptych, paste_panel
from diffusers_flux_ext.testing import quiet, seeded


CASES = {
    "middle": pictures(),
    "large": pictures((1000, 800), (300, 250, 420, 700)),
    "corner": pictures((120, 90), (0, 0, 30, 25)),
    "wide source": pictures((300, 60), (200, 10, 290, 50)),
    "high source": pictures((61, 303), (10, 20, 50, 95)),
    "odd": pictures((121, 91), (3, 5, 24, 88)),
    "one pixel": pictures((120, 90), (50, 60, 51, 61)),
    "most": pictures((120, 90), (1, 1, 119, 89)),
    "full": {**pictures(), "source_mask": region((120, 90), (-900, -900, 900, 900))},
    "mask of another size": {**pictures(), "source_mask": region((77, 50), (10, 8, 40, 33))},
    "grey masks": {
        **pictures(),
        "source_mask": picture(3, (120, 90)).convert("L"),
        "reference_mask": picture(4, (80, 100)).convert("L"),
    },
    "high object": {**pictures(), "reference_mask": region((80, 100), (40, 3, 45, 99))},
}


def theirs(case, size):
    return reference_unit(size).prepare(
        case["source_image"], case["source_mask"], case["reference_image"], case["reference_mask"]
    )


@pytest.mark.parametrize(
    "name, size", [*((name, 112) for name in CASES), ("middle", 768), ("large", 768), ("grey masks", 768)]
)
def test_processing(name, size):
    case = CASES[name]
    panel = picture(11, (size, size))
    with opencv():
        expected = theirs(case, size)
        result = np.asarray(expected["flux_fill_image"]).copy()
        result[:, size:] = np.asarray(panel)
        pasted = reference_unit(size).postprocess(Image.fromarray(result), expected)
    diptych = make_diptych(**case, size=size)
    assert diptych.box == tuple(expected["tar_box_yyxx_crop"])
    assert np.array_equal(diptych.image, expected["flux_fill_image"])
    assert np.array_equal(diptych.mask.convert("RGB"), expected["flux_fill_mask"])
    assert np.array_equal(diptych.reference, expected["flux_redux_image"])
    assert np.array_equal(paste_panel(diptych, panel), pasted)


@pytest.fixture(scope="module")
def pair():
    both = reference_pair(seed=3, in_channels=384, out_channels=64)
    encoder, embedder = tiny_redux_vision(4, 384), tiny_redux_embedder(5)
    add_redux(both.reference, encoder, embedder)
    parts = {"scheduler": FluxFlowMatchScheduler(), "image_encoder": encoder, "image_embedder": embedder}
    return both.reference, quiet(FluxInsertAnythingPipeline(**{**both.components, **parts}))


def call_reference(reference, case, size, steps):
    named = {f"insert_anything_{key.replace('reference', 'ref')}": value for key, value in case.items()}
    reference.units[0] = reference_unit(size)
    with opencv():
        return reference("", seed=0, num_inference_steps=steps, t5_sequence_length=8, progress_bar_cmd=list, **named)


def our_arguments(ours, case, size, steps):
    shape = (1, 16, size // 8, size // 4)
    return {
        **case,
        "height": size,
        "num_inference_steps": steps,
        "guidance_scale": 3.5,
        "max_sequence_length": 8,
        "latents": ours._pack_latents(torch.randn(shape, generator=seeded(0)), *shape),
    }


@pytest.mark.parametrize("size, name", [(112, "odd"), (64, "wide source")])
def test_a_loop(pair, size, name):
    reference, ours = pair
    decoded = []
    handle = reference.vae_decoder.register_forward_hook(lambda module, inputs, output: decoded.append(output))
    expected = np.asarray(call_reference(reference, CASES[name], size, 4))
    handle.remove()
    arguments = our_arguments(ours, CASES[name], size, 4)
    canvas = ours(**arguments, output_type="pt", paste_back=None).images
    torch.testing.assert_close(canvas * 2 - 1, decoded[0].clamp(-1, 1), atol=1e-3, rtol=0)
    pasted = np.asarray(ours(**arguments).images[0]).astype(int)
    # The reference cuts floats to bytes where diffusers rounds them.
    assert np.abs(pasted - expected).max() <= 2
    assert (np.abs(pasted - expected) <= 1).mean() > 0.99
    assert np.abs(pasted - np.asarray(CASES[name]["source_image"])).max() > 10


@pytest.mark.slow
def test_a_loop_of_the_released_size(pair, monkeypatch):
    """Latents of a canvas of 1536 x 768; the VAEs, which have tests of their own, are replaced by a mean."""
    reference, ours = pair

    def mean(image):
        return torch.nn.functional.avg_pool2d(image, 8).repeat(1, 6, 1, 1)[:, :16]

    final = []
    monkeypatch.setattr(reference.vae_encoder, "forward", lambda image, **_: mean(image))
    monkeypatch.setattr(
        reference.vae_decoder, "forward", lambda latents, **_: final.append(latents) or torch.zeros(1, 3, 768, 1536)
    )
    monkeypatch.setattr("diffusers_flux_ext.methods.fill.condition.encode_image", lambda vae, image: mean(image))
    call_reference(reference, CASES["middle"], 768, 2)
    latents = ours(**our_arguments(ours, CASES["middle"], 768, 2), output_type="latent").images
    torch.testing.assert_close(latents, pack_latents(final[0]), atol=1e-3, rtol=0)
