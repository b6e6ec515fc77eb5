"""Nexus-Gen's language model is moved, stored in fewer bits, freed and planned for."""

import copy

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting

from benchmarks.support.tiny.ip_adapter import tiny_ip_adapter, tiny_siglip
from benchmarks.support.tiny.nexus_gen import (
    nexus_components,
)
from diffusers_flux_ext import (
    FluxConditionedPipeline,
    FluxNexusGenPipeline,
    IPAdapterImages,
    NexusGenEmbedding,
    NexusGenModel,
    plan_vram,
)
from diffusers_flux_ext.testing import quiet, tiny_pipeline
from tests.fixtures.offload import watch_card
from tests.methods.nexus_gen.drawing import GUIDED, PICTURE, draw


pytestmark = pytest.mark.versions


class TestTheLanguageModelMoves:
    @pytest.mark.parametrize("level", [{"offload_type": "leaf_level"}, {"offload_type": "block_level"}])
    def test_group_offload(self, pipe, level, tmp_path):
        expected = draw(pipe, image=PICTURE)
        answer = pipe.describe(PICTURE, max_new_tokens=2)
        pipe.mllm.save_pretrained(tmp_path)
        moved = quiet(FluxNexusGenPipeline(**{**pipe.components, "mllm": NexusGenModel.from_pretrained(tmp_path)}))
        blocks = {} if level["offload_type"] == "leaf_level" else {"num_blocks_per_group": 1}
        cpu = torch.device("cpu")
        others = [name for name in pipe.components if name != "mllm"]
        moved.enable_group_offload(onload_device=cpu, offload_device=cpu, exclude_modules=others, **level, **blocks)
        torch.testing.assert_close(draw(moved, image=PICTURE), expected, atol=1e-6, rtol=0)
        assert moved.describe(PICTURE, max_new_tokens=2) == answer

    @pytest.mark.parametrize("picture", [None, PICTURE])
    def test_model_offload_runs_it_alone(self, pipe, picture, monkeypatch, tmp_path):
        pipe.mllm.save_pretrained(tmp_path)
        moved = quiet(
            tiny_pipeline(
                FluxNexusGenPipeline,
                image_encoder=tiny_siglip(),
                **{**nexus_components(), "mllm": NexusGenModel.from_pretrained(tmp_path)},
            )
        )
        pictures = IPAdapterImages(tiny_ip_adapter(1), PICTURE)
        arguments = {"image": picture, "conditions": [pictures], **GUIDED}
        expected = draw(moved, **arguments)
        calls = watch_card(monkeypatch, moved)
        assert torch.equal(draw(moved, **arguments), expected)
        assert [card for name, card in calls if name == "mllm"] == [{"mllm"}]
        small = {"generation_adapter"} if picture is None else set()
        assert all(card - small == {"transformer"} for name, card in calls if name == "transformer")
        calls.clear()
        moved.describe(PICTURE, max_new_tokens=2)
        moved.encode_image_embeds("a cat")
        assert calls == [("mllm", {"mllm"})] * 3

    def test_stored_in_eight_bits(self, pipe, tmp_path):
        pipe.mllm.save_pretrained(tmp_path)
        mllm = NexusGenModel.from_pretrained(tmp_path)
        apply_layerwise_casting(mllm, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=("norm", "patch_embed"))
        stored = quiet(FluxNexusGenPipeline.from_pipe(pipe, mllm=mllm))
        assert mllm.vision_head.weight.dtype == torch.float8_e4m3fn
        assert 1e-4 < (draw(stored, image=PICTURE) - draw(pipe, image=PICTURE)).abs().max() < 0.5

    def test_quantised_to_integers(self, pipe):
        mllm = torch.ao.quantization.quantize_dynamic(copy.deepcopy(pipe.mllm), {torch.nn.Linear}, dtype=torch.qint8)
        quantised = quiet(FluxNexusGenPipeline.from_pipe(pipe, mllm=mllm))
        assert type(mllm.vision_head) is not torch.nn.Linear
        assert 1e-5 < (draw(quantised, image=PICTURE) - draw(pipe, image=PICTURE)).abs().max() < 0.5
        assert isinstance(quantised.describe(PICTURE, max_new_tokens=2), str)

    def test_another_data_type_than_the_pipeline(self, pipe, tmp_path):
        pipe.mllm.save_pretrained(tmp_path)
        half = quiet(
            FluxNexusGenPipeline.from_pipe(pipe, mllm=NexusGenModel.from_pretrained(tmp_path, dtype="bfloat16"))
        )
        assert 1e-5 < (draw(half, image=PICTURE) - draw(pipe, image=PICTURE)).abs().max() < 0.5

    def test_freed_after_encoding(self, pipe):
        freed = quiet(FluxNexusGenPipeline.from_pipe(pipe))
        cached = freed.encode_image_embeds("a cat on the table", PICTURE)
        freed.mllm = None
        assert torch.equal(draw(freed, image_embeds=cached), draw(pipe, image=PICTURE))
        with pytest.raises(ValueError, match="no language model with its processor"):
            draw(freed)


def test_a_plan_has_phases_for_the_language_model_and_the_adapters(pipe):
    plan = plan_vram(pipe, 1, height=32, width=48, max_sequence_length=16)
    phases = [phase.name for phase in plan.phases]
    assert phases == ["text_encoder", "text_encoder_2", "mllm", "generation_adapter", "editing_adapter", "loop", "vae"]
    assert plan.workload.text_tokens == 81 + 335
    plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
    condition = NexusGenEmbedding(pipe.editing_adapter, "a cat", PICTURE, mllm=pipe.mllm, max_pixels=56 * 56)
    plan = plan_vram(plain, 1, height=32, width=48, max_sequence_length=16, conditions=[condition])
    assert "NexusGenEmbedding.mllm" in [phase.name for phase in plan.phases]
    assert plan.workload.text_tokens == 81 + 4
