"""Step1X-Edit: the pipeline with its language model, laws, batches and composition."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks import apply_layerwise_casting

from benchmarks.support.tiny.controlnet import tiny_controlnet
from benchmarks.support.tiny.qwen_vl import tiny_mllm, tiny_qwen_processor
from benchmarks.support.tiny.step1x import edited, tiny_connector
from benchmarks.support.tiny.synthetic import never
from diffusers_flux_ext import (
    ControlNetImage,
    EntityRegions,
    FluxConditionedPipeline,
    FluxStep1XEditPipeline,
    InpaintRegion,
    Step1XConnector,
    Step1XInstruction,
    stream_from_disk,
)
from diffusers_flux_ext._compat import vram_budget_of
from diffusers_flux_ext.methods.step1x_edit import instructions as step1x_embedder
from diffusers_flux_ext.methods.step1x_edit.instructions import MAX_TOKENS, step1x_size
from diffusers_flux_ext.offload.budget import estimate as vram_estimate
from diffusers_flux_ext.offload.budget import placement as vram_placement
from diffusers_flux_ext.offload.budget import planner as vram
from diffusers_flux_ext.testing import different, quiet, seeded, tiny_transformer
from tests.fixtures.offload import watch_card
from tests.fixtures.step1x_pipelines import EMBEDS, LATENTS, TEXT_PARTS, draw, make, make_whole, tiny_question


@pytest.fixture(scope="module")
def pipe() -> Any:
    """Without a language model."""
    return make()


@pytest.fixture(scope="module")
def whole() -> Iterator[Any]:
    """With the language model and without text encoders."""
    with tiny_question():
        yield make_whole()


class TestLanguageModel:
    def test_every_input_counts(self, whole):
        base = draw(whole, "write 'the' sign", negative_prompt="the dog")
        assert torch.isfinite(base).all()
        assert different(base, draw(whole, "write 'red' sign", negative_prompt="the dog"))
        assert different(base, draw(whole, "write 'the' sign"))
        assert different(base, draw(whole, "write 'the' sign", negative_prompt="the dog", cut_at_apostrophes=False))
        condition = Step1XInstruction(
            whole.connector, edited(), "write 'the' sign", "the dog", mllm=tiny_mllm(1), mllm_processor=None
        )
        guided = {"prompt_embeds": torch.zeros(1, 1, 40), "pooled_prompt_embeds": torch.zeros(1, 24)}
        guided |= {f"negative_{name}": value for name, value in guided.items()}
        conditioned = quiet(FluxConditionedPipeline.from_pipe(whole, **dict.fromkeys(TEXT_PARTS)))
        given = {"image": None, "conditions": [replace(condition, mllm_processor=tiny_qwen_processor())]}
        assert different(base, draw(conditioned, **guided, **given))
        given["conditions"] = [replace(given["conditions"][0], mllm=whole.mllm)]
        assert torch.equal(base, draw(conditioned, **guided, **given))

    def test_encoded_instructions_do_without_the_model(self, whole, pipe):
        sides = {"instruction": "make it red", "negative_instruction": ""}
        cached: dict[str, torch.Tensor] = {}
        for name, text in sides.items():
            embeds, mask = whole.encode_instruction(text, edited(), height=32, width=48)
            assert embeds.shape == (1, MAX_TOKENS, 32)
            assert 256 < int(mask.sum()) <= MAX_TOKENS
            assert not embeds[~mask].any()
            cached |= {f"{name}_embeds": embeds, f"{name}_mask": mask}
        assert torch.equal(draw(pipe, **cached), draw(whole, "make it red"))

    def test_the_negative_instruction_is_encoded_only_for_guidance(self, whole, monkeypatch):
        asked = []

        def record(mllm, inputs):
            asked.append(inputs["input_ids"].shape[1])
            return torch.ones(1, inputs["input_ids"].shape[1], 32)

        monkeypatch.setattr(step1x_embedder, "last_hidden_states", record)
        draw(whole, "make it red", negative_prompt="ugly", true_cfg_scale=1.0)
        assert len(asked) == 1
        draw(whole, "make it red", negative_prompt="ugly")
        assert len(asked) == 3

    def test_batches_are_their_samples(self, whole):
        texts, pictures = ["make it red", "the sign"], [edited(0), edited(1, (100, 60))]
        together = draw(whole, texts, image=pictures, num_images_per_prompt=2, latents=LATENTS, negative_prompt="ugly")
        for index in (0, 3):
            alone = {"image": pictures[index // 2], "latents": LATENTS[index : index + 1], "negative_prompt": "ugly"}
            expected = draw(whole, texts[index // 2], **alone)
            torch.testing.assert_close(together[index : index + 1], expected, atol=1e-4, rtol=0)

    def test_the_card_holds_the_language_model_or_the_loop(self, whole, monkeypatch):
        pipe = make_whole()
        expected = draw(pipe, "make it red")
        calls = watch_card(monkeypatch, pipe)
        assert torch.equal(draw(pipe, "make it red"), expected)
        assert [card for name, card in calls if name == "mllm"] == [{"vae", "mllm"}] * 2
        assert [card for name, card in calls if name == "transformer"] == [{"transformer", "connector"}] * 4

    def test_encoding_leaves_the_card_free(self, whole, monkeypatch):
        pipe = make_whole()
        calls = watch_card(monkeypatch, pipe)
        embeds, mask = pipe.encode_instruction("make it red", edited(), 32, 48)
        draw(pipe, instruction_embeds=embeds, instruction_mask=mask, true_cfg_scale=1.0)
        assert [card for name, card in calls if name == "vae"][0] == {"vae"}

    def test_encoding_rounds_the_size_as_the_call_does(self, whole):
        picture = edited(0, (100, 70))
        embeds, mask = whole.encode_instruction("make it red", picture, 36, 52)
        arguments = {"image": picture, "height": 36, "width": 52, "true_cfg_scale": 1.0}
        cached = draw(whole, instruction_embeds=embeds, instruction_mask=mask, **arguments)
        assert torch.equal(cached, draw(whole, "make it red", **arguments))

    def test_a_budget_has_the_connector_in_the_loop(self, whole, monkeypatch):
        monkeypatch.setattr(vram, "MARGIN_BYTES", 0)
        monkeypatch.setattr(vram_estimate, "ASSUMED_BYTES", 2**14)
        monkeypatch.setattr(vram_placement, "SMALL", 2**14)
        pipe = make_whole()
        expected = draw(pipe, "make it red")
        plan = pipe.enable_vram_budget(3e6 / 2**30, "cpu", height=32, width=48, max_sequence_length=16)
        assert {each.name: each.phase for each in plan.components} == {
            "mllm": "mllm", "transformer": "loop", "connector": "loop", "vae": "vae"
        }  # fmt: skip
        assert (plan.workload.text_tokens, plan.workload.image_tokens) == (640, 12)
        phases, budget = [], vram_budget_of(pipe)
        switch = budget._switch
        monkeypatch.setattr(budget, "_switch", lambda phase: (phases.append(phase), switch(phase)))
        assert torch.equal(draw(pipe, "make it red"), expected)
        assert phases == ["vae", "mllm", "loop", "vae"]
        assert budget.plan is plan

    def test_the_language_model_streams_from_disk(self, whole, tmp_path):
        pipe = make_whole()
        expected = draw(pipe, "make it red")
        pipe.mllm.save_pretrained(tmp_path / "own")
        with pytest.raises(ValueError, match="stream it with `offload_dir` in place of `source`"):
            stream_from_disk(pipe.mllm, tmp_path / "own")
        for name in ("mllm", "connector"):
            stream_from_disk(getattr(pipe, name), offload_dir=tmp_path)
        assert torch.equal(draw(pipe, "make it red"), expected)

    def test_group_offloading(self, whole):
        pipe = make_whole()
        expected = draw(pipe, "make it red")
        pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
        assert torch.equal(draw(pipe, "make it red"), expected)

    def test_bfloat16(self, whole):
        pipe = make_whole().to(torch.bfloat16)
        assert torch.isfinite(draw(pipe, "make it red", latents=LATENTS[:1].to(torch.bfloat16))).all()

    def test_fp8_storage_of_everything(self, whole):
        pipe = make_whole().to(torch.bfloat16)
        kept = ("pos_embed", "norm_q", "norm_k", "norm_added", "^proj_out$")
        for module, skipped in (
            (pipe.transformer, kept),
            (pipe.connector, kept),
            (pipe.mllm, ("norm", "ln_q", "patch_embed")),
        ):
            apply_layerwise_casting(module, torch.float8_e4m3fn, torch.bfloat16, skip_modules_pattern=skipped)
        assert pipe.connector.blocks[0].to_qkv.weight.dtype == torch.float8_e4m3fn
        assert pipe.transformer.transformer_blocks[0].norm1.linear.weight.dtype == torch.float8_e4m3fn
        latents = LATENTS[:1].to(torch.bfloat16)
        images = draw(pipe, "make it red", latents=latents)
        expected = draw(make_whole().to(torch.bfloat16), "make it red", latents=latents)
        assert torch.isfinite(images).all()
        assert 0 < (images - expected).float().pow(2).mean().sqrt() < 0.2


class TestPictures:
    @pytest.mark.parametrize("mode", ["RGBA", "L", "1"])
    def test_any_mode(self, whole, mode):
        assert torch.isfinite(draw(whole, "make it red", image=edited().convert(mode))).all()

    @pytest.mark.parametrize("size", [(1, 1), (600, 4), (7, 90)])
    def test_any_size(self, whole, size):
        assert draw(whole, "make it red", image=edited(0, size)).shape == (1, 3, 32, 48)

    def test_arrays_and_tensors_are_the_same_pictures(self, pipe):
        array = np.asarray(edited())
        base = draw(pipe, **EMBEDS)
        for other in (array, array[None], torch.from_numpy(array.copy()).movedim(-1, 0), [edited()]):
            assert torch.equal(draw(pipe, image=other, **EMBEDS), base)

    def test_the_size_keeps_the_aspect(self, pipe):
        assert step1x_size(1000, 1000, 512) == (512, 512)
        assert step1x_size(1920, 1080, 1024) == (1360, 768)
        assert step1x_size(1080, 1920, 768) == (576, 1024)
        assert step1x_size(3, 3000, 512) == (16, 16176)
        drawn = draw(pipe, image=edited(0, (90, 60)), size_level=48, height=None, width=None, latents=None, **EMBEDS)
        assert drawn.shape == (1, 3, 32, 48)


class TestLaws:
    def test_the_connector_runs_its_first_half_once_a_branch(self, pipe, monkeypatch):
        calls = []
        context = Step1XConnector._context
        monkeypatch.setattr(Step1XConnector, "_context", lambda *args: calls.append(1) or context(*args))
        draw(pipe, num_inference_steps=3, **EMBEDS)
        assert len(calls) == 2

    def test_contributions_do_without_the_prepared_half(self, pipe):
        connector = pipe.connector
        context = connector(EMBEDS["instruction_embeds"])
        timestep = torch.tensor([0.3])
        direct, pooled = connector(EMBEDS["instruction_embeds"], None, timestep)
        assert torch.equal(connector(context, timestep=timestep)[0], direct)
        assert torch.equal(context.pooled, pooled)

    def test_the_connector_masks_and_the_power_count(self, pipe):
        base = draw(pipe, **EMBEDS)
        assert different(base, draw(make(connector=tiny_connector(1)), **EMBEDS))
        mask = torch.arange(7)[None] < 4
        for name in ("instruction_mask", "negative_instruction_mask"):
            assert different(base, draw(pipe, **EMBEDS, **{name: mask}))
        rescaled = {power: draw(pipe, **EMBEDS, rescale_above=0.6, rescale_power=power) for power in (0.0, 0.4, 0.9)}
        assert torch.equal(rescaled[0.0], base)
        assert different(rescaled[0.4], base)
        assert different(rescaled[0.4], rescaled[0.9])
        assert torch.equal(draw(pipe, **EMBEDS, rescale_above=1.0), base)

    def test_every_weight_of_the_connector_is_used_inside_of_its_block(self):
        """Block level offloading brings the weights of a block when that block is called."""
        connector, outside, running = tiny_connector(), [], []
        for block in connector.blocks:
            block.register_forward_pre_hook(lambda module, _: running.append(module))
            block.register_forward_hook(lambda *_: running.clear())
            for layer in block.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.register_forward_pre_hook(lambda module, _: None if running else outside.append(module))
        connector(connector(EMBEDS["instruction_embeds"]), timestep=torch.tensor([0.3]))
        assert not outside

    def test_hidden_padding_does_not_matter(self, pipe):
        """With `mask_padding`, instructions with padding draw the same as without it."""
        padded = {**EMBEDS, "instruction_mask": torch.arange(7)[None] < 4}
        cut = {**EMBEDS, "instruction_embeds": EMBEDS["instruction_embeds"][:, :4]}
        for conditions in ([], [EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)])]):
            common = {"conditions": conditions, "mask_padding": True}
            torch.testing.assert_close(draw(pipe, **padded, **common), draw(pipe, **cut, **common), atol=1e-5, rtol=0)
        assert different(draw(pipe, **padded, mask_padding=True), draw(pipe, **padded))

    def test_guidance_is_on_by_default_and_off_at_one(self, pipe):
        six = draw(pipe, **EMBEDS, true_cfg_scale=6.0)
        arguments = {"image": edited(), "height": 32, "width": 48, "num_inference_steps": 2, "latents": LATENTS[:1]}
        assert torch.equal(pipe(**EMBEDS, **arguments, output_type="pt").images, six)
        off = draw(pipe, **EMBEDS, true_cfg_scale=1.0)
        assert torch.equal(off, draw(pipe, instruction_embeds=EMBEDS["instruction_embeds"], true_cfg_scale=1.0))

    def test_text_encoders_do_not_matter(self, pipe):
        bare = quiet(FluxStep1XEditPipeline(**{**pipe.components, **dict.fromkeys(TEXT_PARTS)}))
        assert torch.equal(draw(bare, **EMBEDS), draw(pipe, **EMBEDS))

    def test_version_one_point_one_has_positions_and_timesteps_of_its_own(self, pipe):
        newer = {"scale_pooled": False, "timestep_scale": 1000.0, "reference_offset": 1}
        base = draw(make(connector=tiny_connector(0, scale_pooled=False)), **EMBEDS)
        for name in ("timestep_scale", "reference_offset"):
            other = tiny_connector(0, scale_pooled=False, **{name: newer[name]})
            assert different(base, draw(make(connector=other), **EMBEDS))

    def test_an_initial_picture(self, pipe):
        started = draw(pipe, init_image=edited(3), strength=0.5, latents=None, generator=seeded(), **EMBEDS)
        other = draw(pipe, init_image=edited(4), strength=0.5, latents=None, generator=seeded(), **EMBEDS)
        assert different(started, other)


class TestComposition:
    def test_regions_on_the_negative_side_follow_the_prompt_of_each_step(self, pipe):
        """The same as regions whose contribution is made anew at every step."""

        class EveryStep(EntityRegions):
            reuse = never

        inputs = (["a red dog", "a tree"], [(0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 0.5)], "own")
        kept = draw(pipe, conditions=[EntityRegions(*inputs)], num_inference_steps=3, **EMBEDS)
        anew = draw(pipe, conditions=[EveryStep(*inputs)], num_inference_steps=3, **EMBEDS)
        torch.testing.assert_close(kept, anew, atol=1e-6, rtol=0)
        assert different(kept, draw(pipe, num_inference_steps=3, **EMBEDS))

    def test_with_regions_a_controlnet_and_inpainting(self, pipe):
        kept = edited(6)
        conditions = [
            EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)]),
            ControlNetImage(tiny_controlnet(5), edited(5), 0.7),
            InpaintRegion(kept, (0.0, 0.0, 0.67, 1.0)),
        ]
        together = draw(pipe, conditions=conditions, **EMBEDS)
        for index in range(3):
            rest = conditions[:index] + conditions[index + 1 :]
            assert different(together, draw(pipe, conditions=rest, **EMBEDS))
        right = torch.from_numpy(np.array(kept)).movedim(-1, 0)[:, :, 40:] / 255
        torch.testing.assert_close(together[0][:, :, 40:], right, atol=1e-2, rtol=0)

    def test_a_lora_in_kohyas_format(self, pipe):
        ours = quiet(
            FluxStep1XEditPipeline(**{**pipe.components, "transformer": tiny_transformer(0, guidance_embeds=False)})
        )
        base = draw(ours, **EMBEDS)
        lora = {}
        for name, (rows, columns) in {
            "double_blocks_0_img_attn_qkv": (96, 32),
            "single_blocks_1_linear2": (32, 160),
        }.items():
            key = f"lora_unet_{name}"
            lora |= {
                f"{key}.alpha": torch.tensor(2.0),
                f"{key}.lora_up.weight": torch.randn(rows, 4, generator=seeded(1)),
            }
            lora[f"{key}.lora_down.weight"] = torch.randn(4, columns, generator=seeded(2))
        ours.load_lora_weights(lora)
        assert different(draw(ours, **EMBEDS), base)
        ours.unload_lora_weights()
        assert torch.equal(draw(ours, **EMBEDS), base)
