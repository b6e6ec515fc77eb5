"""Nexus-Gen against the reference's: the language model, adapter, merger, positions and loops.

The reference's language model needs transformers 4.49. Its values were recorded, see `record_nexus_gen.py`.
"""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.support.parity.loop import TOLERANCE, our_images, reference_images
from benchmarks.support.reference import (
    import_reference,
    reference_nexus_adapter,
    reference_nexus_merger,
    reference_pair,
)
from benchmarks.support.tiny.nexus_gen import pictures, tiny_adapter, tiny_language_model, tiny_merger
from benchmarks.support.tiny.qwen_vl import HIDDEN
from diffusers_flux_ext import FluxFlowMatchScheduler, FluxNexusGenPipeline
from diffusers_flux_ext.canvas import Canvas
from diffusers_flux_ext.methods.nexus_gen.prompts import editing_ids, embed_prompts
from diffusers_flux_ext.testing import quiet, seeded
from tests.methods.nexus_gen.record_values import CASES, KEPT_ROWS, SIZES, VALUES


CLOSE = {"atol": 1e-4, "rtol": 0}
PROMPT = "a cat on the table"
PICTURE = Image.effect_mandelbrot((60, 90), (-2, -1, 1, 1), 20).convert("RGB")


class TestLanguageModel:
    @pytest.fixture(scope="class")
    def recorded(self):
        return load_file(VALUES)

    @pytest.mark.parametrize("case", CASES)
    def test_embeddings(self, recorded, case):
        prompt, picture = CASES[case]
        images = None if picture is None else [pictures(SIZES)[picture]]
        embeds = embed_prompts(*tiny_language_model(), [prompt], images)
        torch.testing.assert_close(embeds["image_embeds"][0, ::KEPT_ROWS], recorded[f"{case}.image_embeds"], **CLOSE)
        if images:
            expected = recorded[f"{case}.reference_embeds"]
            torch.testing.assert_close(embeds["reference_embeds"][0, ::KEPT_ROWS], expected, **CLOSE)
            assert embeds["reference_grid"].tolist() == recorded[f"{case}.grids"][0, 1:].tolist()

    def test_positions_of_plain_text_would_be_noticed(self, recorded, monkeypatch):
        mllm, processor = tiny_language_model()
        rope_index = mllm.model.get_rope_index

        def flat(**inputs):
            return rope_index(**{**inputs, "mm_token_type_ids": torch.zeros_like(inputs["mm_token_type_ids"])})

        monkeypatch.setattr(mllm.model, "get_rope_index", flat)
        embeds = embed_prompts(mllm, processor, [CASES["generation"][0]])
        difference = embeds["image_embeds"][0, ::KEPT_ROWS] - recorded["generation.image_embeds"]
        assert difference.abs().max() > 0.01


class TestModules:
    def test_the_adapter(self):
        adapter, embeds = tiny_adapter(2), torch.randn(2, 81, HIDDEN, generator=seeded(1))
        torch.testing.assert_close(adapter(embeds), reference_nexus_adapter(adapter)(embeds), **CLOSE)

    @pytest.mark.parametrize("sizes", [{}, {"num_layers": 2, "num_attention_heads": 4, "mrope_section": (1, 2, 1)}])
    @pytest.mark.parametrize("grid", [None, (4, 6), (36, 36), (2, 50)])
    def test_the_merger(self, sizes, grid):
        merger, embeds = tiny_merger(3, **sizes), torch.randn(2, 81, HIDDEN, generator=seeded(1))
        reference, arguments, ours = reference_nexus_merger(merger), [torch.tensor([[1, 18, 18]])], [(18, 18)]
        if grid is not None:
            given = torch.randn(2, grid[0] * grid[1] // 4, HIDDEN, generator=seeded(2))
            arguments += [given, torch.tensor([[1, *grid]])]
            ours += [given, grid]
        tokens = merger(embeds, *ours)
        torch.testing.assert_close(tokens, reference(embeds, *arguments), **CLOSE)
        assert tokens.shape == (2, 81 + (0 if grid is None else given.shape[1]), 40)

    @pytest.mark.parametrize("grid", [(4, 6), (36, 36), (2, 50)])
    @pytest.mark.parametrize("size", [(512, 512), (768, 1024), (48, 64)])
    def test_the_positions(self, grid, size):
        unit = import_reference("diffsynth.pipelines.flux_image").FluxImageUnit_NexusGen()
        latents = torch.zeros(1, 16, size[0] // 8, size[1] // 8)
        canvas = Canvas(*size, 1, 1, torch.device("cpu"), torch.float32)
        expected = unit.get_editing_text_ids(latents, 18, 18, *grid)[0]
        torch.testing.assert_close(editing_ids(canvas, [(18, 18), grid], 2), expected, atol=1e-5, rtol=0)


class _ReferenceLanguageModel:
    """Gives what the recorded one does, by our own model, which the tests above compare with it."""

    def __call__(self, prompt, image=None):
        embeds = embed_prompts(*tiny_language_model(), [prompt], None if image is None else [image])
        if image is None:
            return embeds["image_embeds"][0], None, None
        grids = torch.tensor([[1, *embeds["reference_grid"].tolist()], [1, 18, 18]])
        return embeds["image_embeds"][0], embeds["reference_embeds"][0], grids


@pytest.fixture(scope="module")
def pair():
    both, adapter, merger = reference_pair(seed=3), tiny_adapter(4), tiny_merger(5)
    both.reference.nexus_gen = _ReferenceLanguageModel()
    both.reference.nexus_gen_generation_adapter = reference_nexus_adapter(adapter)
    both.reference.nexus_gen_editing_adapter = reference_nexus_merger(merger)
    mllm, processor = tiny_language_model()
    components = {**both.components, "scheduler": FluxFlowMatchScheduler(), "mllm": mllm, "mllm_processor": processor}
    ours = FluxNexusGenPipeline(**components, generation_adapter=adapter, editing_adapter=merger)
    return both.reference, quiet(ours)


GUIDED = ({"negative_prompt": "ugly", "cfg_scale": 2.0}, {"negative_prompt": "ugly", "true_cfg_scale": 2.0})


@pytest.mark.parametrize("picture", [None, PICTURE])
@pytest.mark.parametrize("guided", [({}, {}), GUIDED])
def test_the_loop(pair, picture, guided):
    reference, ours = pair
    expected = reference_images(reference, {"nexus_gen_reference_image": picture, **guided[0]}).clamp(-1, 1)
    images = our_images(ours, image=picture, **guided[1])
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
    other = our_images(ours, image=None if picture else PICTURE, **guided[1])
    assert (images - other).abs().max() > 0.01
