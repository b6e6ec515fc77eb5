"""Nexus-Gen: laws, batches, inputs, both decoders, saving, sharing, and a language model that is moved or freed."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.hooks import apply_layerwise_casting
from PIL import Image
from safetensors.torch import load_file, save_file

import diffusers_flux_ext
from diffusers_flux_ext import (
    AttributeValues,
    EntityRegions,
    FluxConditionedPipeline,
    FluxNexusGenPipeline,
    IPAdapterImages,
    NexusGenEmbedding,
    NexusGenModel,
    load_nexus_gen_decoder,
    plan_vram,
)
from diffusers_flux_ext.testing import call_kwargs, different, quiet, seeded, tiny_pipeline, tiny_transformer
from tests.fixtures.attribute_values import tiny_value_encoder
from tests.fixtures.ip_adapter import tiny_ip_adapter, tiny_siglip
from tests.fixtures.nexus_gen import (
    HIDDEN,
    image_embeds,
    nexus_components,
    pictures,
    published_decoder,
    tiny_adapter,
    tiny_merger,
)
from tests.fixtures.offload import watch_card
from tests.fixtures.qwen_vl import tiny_mllm


pytestmark = pytest.mark.versions
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
SMALL = {"num_inference_steps": 2}
PICTURE, WIDE, LARGE = pictures({"a": (60, 40), "b": (110, 40), "c": (150, 120)}).values()
OTHER = PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxNexusGenPipeline, **nexus_components())


def draw(pipe, **arguments):
    return pipe(**call_kwargs(**{**SMALL, **arguments})).images


class TestLaws:
    @pytest.mark.parametrize("picture", [None, PICTURE])
    def test_the_named_pipeline_is_the_condition(self, pipe, picture):
        adapter = pipe.generation_adapter if picture is None else pipe.editing_adapter
        models = {"mllm": pipe.mllm, "mllm_processor": pipe.mllm_processor}
        condition = NexusGenEmbedding(adapter, "a cat on the table", picture, **models)
        plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
        named = draw(pipe, image=picture, **GUIDED)
        assert torch.equal(named, draw(plain, conditions=[condition], **GUIDED))
        assert different(named, draw(plain, **GUIDED))

    @pytest.mark.parametrize("picture", [None, PICTURE])
    def test_cached_embeddings_need_no_language_model(self, pipe, picture, tmp_path):
        save_file(pipe.encode_image_embeds("a cat on the table", picture), tmp_path / "embeds.safetensors")
        cached = load_file(tmp_path / "embeds.safetensors")
        without = quiet(FluxNexusGenPipeline.from_pipe(pipe, mllm=None, mllm_processor=None))
        assert torch.equal(draw(without, image_embeds=cached), draw(pipe, image=picture))
        if picture is None:
            assert torch.equal(draw(without, image_embeds=cached["image_embeds"]), draw(pipe))

    def test_the_negative_branch_and_the_pooled_prompt_stay(self, pipe):
        seen = []
        handle = pipe.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
        )
        try:
            plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
            draw(pipe, num_inference_steps=1, **GUIDED)
            draw(plain, num_inference_steps=1, **GUIDED)
        finally:
            handle.remove()
        cond, uncond, plain_cond, plain_uncond = seen
        assert torch.equal(uncond["encoder_hidden_states"], plain_uncond["encoder_hidden_states"])
        assert torch.equal(cond["pooled_projections"], plain_cond["pooled_projections"])
        assert cond["encoder_hidden_states"].shape == (1, 81, 40)

    def test_everything_but_the_transformer_runs_once(self, pipe, monkeypatch):
        calls = []
        for name in ("mllm", "editing_adapter"):
            forward = getattr(pipe, name).forward

            def counted(*args, _name=name, _forward=forward, **kwargs):
                calls.append(_name)
                return _forward(*args, **kwargs)

            monkeypatch.setattr(getattr(pipe, name), "forward", counted)
        draw(pipe, image=PICTURE, num_inference_steps=3, **GUIDED)
        assert calls == ["mllm", "editing_adapter"]

    def test_every_decoder_for_both_tasks(self, pipe):
        pictures = {
            (name, picture is None): draw(pipe, decoder=name, image=picture)
            for name in ("generation", "editing")
            for picture in (None, PICTURE)
        }
        assert torch.equal(pictures["generation", True], draw(pipe))
        assert torch.equal(pictures["editing", False], draw(pipe, image=PICTURE))
        drawn = list(pictures.values())
        assert all(different(one, other) for index, one in enumerate(drawn) for other in drawn[:index])

    def test_language_and_max_pixels(self, pipe):
        assert different(draw(pipe, language="zh"), draw(pipe))
        assert torch.equal(draw(pipe, image=PICTURE, language="zh"), draw(pipe, image=PICTURE))
        assert different(draw(pipe, image=LARGE, max_pixels=56 * 56), draw(pipe, image=LARGE))

    def test_t5_is_for_the_negative_prompt_only(self, pipe):
        without = quiet(FluxNexusGenPipeline.from_pipe(pipe, text_encoder_2=None, tokenizer_2=None))
        batch = {"prompt": ["a cat", "a red tree"], "num_images_per_prompt": 2, "image": PICTURE, "generator": None}
        batch["joint_attention_kwargs"] = {"scale": 0.5}
        latents = torch.randn(4, 6, 64, generator=seeded(5))
        for hidden in ({}, {"mask_padding": True}):
            given = {"latents": latents, **batch, **hidden}
            assert torch.equal(draw(without, **given), draw(pipe, **given))
        with pytest.raises(ValueError, match="no `text_encoder_2`, which reads the negative prompt"):
            draw(without, **GUIDED)

    def test_image_to_image(self, pipe):
        plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
        condition = NexusGenEmbedding(
            pipe.editing_adapter, "a cat", PICTURE, mllm=pipe.mllm, mllm_processor=pipe.mllm_processor
        )
        start = {"strength": 0.6, "prompt": "a cat", "num_inference_steps": 3}
        drawn = draw(pipe, image=PICTURE, init_image=LARGE, **start)
        assert torch.equal(drawn, draw(plain, image=LARGE, conditions=[condition], **start))

    def test_with_entities_and_attributes_in_any_order(self, pipe):
        others = [
            EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)], negative="own"),
            AttributeValues(tiny_value_encoder(), {"brightness": 0.7}),
        ]
        drawn = [draw(pipe, image=PICTURE, conditions=order, **GUIDED) for order in (others, others[::-1])]
        torch.testing.assert_close(*drawn, atol=1e-5, rtol=0)
        assert different(drawn[0], draw(pipe, image=PICTURE, conditions=others[:1], **GUIDED))

    def test_training_reaches_the_adapter(self, pipe):
        merger = tiny_merger().requires_grad_(True)
        condition = NexusGenEmbedding(merger, image_embeds=image_embeds())
        from diffusers_flux_ext import Canvas, DenoisingStep, PromptEmbeds

        canvas = Canvas(32, 48, 1, 1, torch.device("cpu"), torch.float32)
        prompt = PromptEmbeds(torch.zeros(1, 4, 40), torch.zeros(1, 24), torch.zeros(4, 3))
        step = DenoisingStep(0, 1, "cond", torch.ones(1), torch.zeros(1, 6, 64), torch.zeros(6, 3), prompt)
        condition.replace_prompt(condition.encode(pipe, canvas), step).hidden_states.square().sum().backward()
        assert all(weight.grad is not None for weight in merger.parameters())


@pytest.mark.parametrize("given", [[PICTURE, OTHER], PICTURE, None], ids=["one each", "one for all", "none"])
def test_batches_are_their_samples(pipe, given):
    latents, prompts = torch.randn(4, 6, 64, generator=seeded(5)), ["a cat", "a red tree"]
    together = draw(pipe, prompt=prompts, num_images_per_prompt=2, latents=latents, image=given, **GUIDED)
    for index in (1, 2):
        one = {"image": given[index // 2] if isinstance(given, list) else given, "latents": latents[index : index + 1]}
        alone = draw(pipe, prompt=prompts[index // 2], **one, **GUIDED)
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


class TestPictures:
    def test_of_every_kind(self, pipe):
        expected = draw(pipe, image=PICTURE)
        array = np.asarray(PICTURE)
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255
        same = [PICTURE.convert("RGBA"), array, array[None], tensor]
        assert all(torch.equal(draw(pipe, image=picture), expected) for picture in same)
        grey = PICTURE.convert("L")
        assert torch.equal(draw(pipe, image=grey), draw(pipe, image=grey.convert("RGB")))

    @pytest.mark.parametrize("size", [(1, 1), (2000, 10), (600, 460)])
    def test_of_every_size(self, pipe, size):
        assert draw(pipe, image=Image.new("RGB", size, (200, 30, 30)), num_inference_steps=1).isfinite().all()

    def test_too_long(self, pipe):
        with pytest.raises(ValueError, match="201 x 1 pixels.*at most 200 times"):
            draw(pipe, image=Image.new("RGB", (201, 1)))
        with pytest.raises(ValueError, match="201 x 1 pixels"):
            pipe.describe(Image.new("RGB", (201, 1)))


def test_descriptions(pipe):
    answer = pipe.describe(PICTURE, "what is it?", max_new_tokens=3)
    assert answer == pipe.mllm.describe(PICTURE, "what is it?", processor=pipe.mllm_processor, max_new_tokens=3)
    assert isinstance(answer, str)


@pytest.mark.parametrize("ask", ["encode_image_embeds", "describe"])
def test_what_asks_the_language_model_checks_its_options(pipe, ask):
    with pytest.raises(ValueError, match="`max_pixels` .*must be from 3136 .*got 100"):
        getattr(pipe, ask)("a cat" if ask == "encode_image_embeds" else PICTURE, max_pixels=100)
    with pytest.raises(ValueError, match="`language` .*one of .*got 'fr'"):
        pipe.encode_image_embeds("a cat", language="fr")
    for prompts, given, message in (([], PICTURE, "is an empty list"), ("a cat", [], "holds no image")):
        with pytest.raises(ValueError, match=message):
            pipe.encode_image_embeds(prompts, given)


def test_prompts_from_empty_to_too_long(pipe):
    assert draw(pipe, prompt="").isfinite().all()
    with pytest.raises(ValueError, match="The prompt makes 4[0-9]{3} tokens.*takes 4096"):
        draw(pipe, prompt="a" * 4100)


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


class TestFiles:
    def test_saved_and_reloaded(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        expected = draw(pipe, image=PICTURE)
        for loader in (FluxNexusGenPipeline, DiffusionPipeline):
            loaded = quiet(loader.from_pretrained(tmp_path))
            assert type(loaded) is FluxNexusGenPipeline
            assert torch.equal(draw(loaded, image=PICTURE), expected)

    def test_reloaded_in_bfloat16(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        loaded = quiet(FluxNexusGenPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16))
        assert loaded.mllm.dtype == loaded.editing_adapter.dtype == torch.bfloat16
        for picture in (None, PICTURE):
            assert torch.isfinite(draw(loaded, image=picture, **GUIDED).float()).all()
        assert loaded.describe(PICTURE, max_new_tokens=1) is not None

    def test_on_a_plain_repository(self, tmp_path):
        tiny_pipeline(FluxPipeline).save_pretrained(tmp_path)
        shim = diffusers_flux_ext.custom_pipeline("nexus_gen")
        loaded = DiffusionPipeline.from_pretrained(
            tmp_path, **nexus_components(), custom_pipeline=shim, trust_remote_code=True
        )
        assert type(loaded) is FluxNexusGenPipeline
        draw(quiet(loaded), image=PICTURE)

    def test_from_pipe_both_ways(self, pipe):
        stock = tiny_pipeline(FluxPipeline).to(torch.bfloat16)
        ours = FluxNexusGenPipeline.from_pipe(stock, **nexus_components())
        assert ours.transformer is stock.transformer
        assert ours.transformer.dtype == torch.bfloat16
        assert FluxNexusGenPipeline.from_pipe(ours).mllm is pipe.mllm
        assert pipe.to_pipeline(FluxPipeline).transformer is pipe.transformer

    def test_one_pipeline_for_each_decoder(self, pipe, tmp_path):
        both = {"generation": (tiny_transformer(7), tiny_adapter(7)), "editing": (tiny_transformer(8), tiny_merger(8))}
        loaded = {}
        for name, parts in both.items():
            torch.save(published_decoder(*parts), tmp_path / f"{name}.bin")
            sizes = {"axes_dims_rope": (4, 6, 6), "mrope_section": (2, 3, 3)}
            loaded[name] = load_nexus_gen_decoder(tmp_path / f"{name}.bin", **sizes)
        (transformer, adapter), (edit_transformer, merger) = loaded["generation"], loaded["editing"]
        base = quiet(
            FluxNexusGenPipeline.from_pipe(
                pipe, transformer=transformer, generation_adapter=adapter, editing_adapter=None
            )
        )
        edit = quiet(
            FluxNexusGenPipeline.from_pipe(
                base, transformer=edit_transformer, generation_adapter=None, editing_adapter=merger
            )
        )
        assert edit.mllm is base.mllm
        assert edit.vae is base.vae
        assert base.transformer is transformer
        assert draw(base).isfinite().all()
        assert draw(edit, image=PICTURE).isfinite().all()
        with pytest.raises(ValueError, match="no `editing_adapter`.*as `transformer` and `editing_adapter`"):
            draw(base, image=PICTURE)


EMBEDS = image_embeds()
BAD = {
    "no prompt": ({"prompt": None}, ValueError, "neither a `prompt` nor `image_embeds`"),
    "an empty list": ({"prompt": []}, ValueError, "`prompt` is an empty list"),
    "a number": ({"prompt": 5}, TypeError, "`prompt` must be a text or a list of texts, got 5"),
    "both": ({"image": PICTURE, "image_embeds": EMBEDS}, ValueError, "`image` .*and `image_embeds` .*both given"),
    "a prompt for T5": ({"prompt_2": "a dog"}, ValueError, "does not read `prompt_2`"),
    "another decoder": ({"decoder": "drawing"}, ValueError, "`decoder` must be one of .*'generation'.*got 'drawing'"),
    "another language": ({"language": "fr"}, ValueError, "`language` must be one of .*'en', 'zh'.*got 'fr'"),
    "too few pixels": ({"image": PICTURE, "max_pixels": 100}, ValueError, "`max_pixels` must be from 3136 .*got 100"),
    "two shapes": ({"prompt": ["a", "b"], "image": [PICTURE, WIDE]}, ValueError, "must have one shape.*2, 8.*4, 6"),
    "three pictures": ({"prompt": ["a", "b"], "image": [PICTURE] * 3}, ValueError, "2 texts and .* 3 images"),
    "a picture twice": ({"prompt": "<image> and <image>", "image": PICTURE}, ValueError, "3 times, got 2 images"),
    "no picture": ({"image": "cat.png"}, TypeError, "got 'cat.png'"),
    "another width": (
        {"image_embeds": torch.zeros(1, 81, 8)},
        ValueError,
        r"image_embeds.*length, 32\).*got \(1, 81, 8\)",
    ),
    "a missing grid": (
        {"image_embeds": {key: EMBEDS[key] for key in list(EMBEDS)[:2]}},
        ValueError,
        "has the entries",
    ),
    "unknown parts": ({"image_embeds": {"embeds": EMBEDS["image_embeds"]}}, ValueError, "has the entries .*'embeds'"),
    "no whole square": (
        {"image_embeds": torch.zeros(1, 80, HIDDEN), "decoder": "editing"},
        ValueError,
        "embeddings, got 80",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(pipe, arguments, error, message):
    with pytest.raises(error, match=message):
        draw(pipe, **arguments)


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


def test_bad_conditions(pipe):
    with pytest.raises(TypeError, match="`adapter` of NexusGenEmbedding is a Linear; expected a `NexusGenAdapter`"):
        NexusGenEmbedding(torch.nn.Linear(2, 2), "a cat")
    with pytest.raises(ValueError, match="Exactly one of `prompt` .*and `image_embeds`"):
        NexusGenEmbedding(tiny_adapter(), "a cat", image_embeds=EMBEDS)
    wide = diffusers_flux_ext.NexusGenAdapter(HIDDEN, 48)
    with pytest.raises(ValueError, match="width 48, but the transformer's text is 40"):
        draw(pipe, conditions=[NexusGenEmbedding(wide, "a cat")], image_embeds=EMBEDS)
    with pytest.raises(ValueError, match=r"has no \['mllm', 'mllm_processor'\]"):
        tiny_pipeline(FluxNexusGenPipeline).describe(PICTURE)
    stock = quiet(FluxNexusGenPipeline.from_pipe(pipe, mllm=tiny_mllm()))
    for ask in (draw, lambda other: other.describe(PICTURE)):
        with pytest.raises(TypeError, match="is a Qwen2_5_VLForConditionalGeneration; expected a `NexusGenModel`"):
            ask(stock)
