"""Every argument of the call changes the image, or raises an error that names it."""

import inspect
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.support.diffsynth.models import DEV, FILES, NEXUS, REDUX
from diffusers_flux_ext.diffsynth import ControlNetInput, FluxImagePipeline, ModelConfig, running
from diffusers_flux_ext.diffsynth.controls import window
from tests.diffsynth.pipelines import differ, draw, load, shared
from tests.fixtures.diffsynth_scripts import OurFaces


PICTURE = Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 20).convert("RGB")
OTHER = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
LEFT, RIGHT = Image.new("RGB", (64, 48)), Image.new("RGB", (64, 48))
LEFT.paste((255, 255, 255), (0, 0, 32, 48))
RIGHT.paste((255, 255, 255), (32, 0, 64, 48))
TOP = Image.new("RGB", (64, 48))
TOP.paste((255, 255, 255), (0, 0, 64, 16))
NETS = [key for key in FILES if "ontrolnet" in key[0]]
INFUSE = [key for key in FILES if key[0] == "ByteDance/InfiniteYou"]
VALUES = [key for key in FILES if "AttriCtrl" in key[0]]
IP_ADAPTER = [
    ("InstantX/FLUX.1-dev-IP-Adapter", "ip-adapter.bin"),
    ("google/siglip-so400m-patch14-384", "model.safetensors"),
]
ENCODER = [("DiffSynth-Studio/LoRA-Encoder-FLUX.1-Dev", "model.safetensors")]
TOWERS = [key for key in FILES if key[0] == REDUX]
FILL = ("black-forest-labs/FLUX.1-Fill-dev", "flux1-fill-dev.safetensors")
FLEX = ("ostris/Flex.2-preview", "Flex.2-preview.safetensors")
LORA = "VoidOc/flux_animal_forest1"


def net(**fields):
    """The input of the upscaler, which is the third of `NETS`."""
    return [ControlNetInput(controlnet_id=2, image=fields.pop("image", PICTURE), **fields)]


ENTITIES = {"eligen_entity_prompts": ["a dog"], "eligen_entity_masks": [LEFT]}
GUIDED = {"cfg_scale": 2.0, "negative_prompt": "ugly"}
FACE = {"controlnet_inputs": [ControlNetInput(image=Image.new("RGB", (64, 48)))], "infinityou_id_image": OTHER}
HOLE = {"flux_fill_image": PICTURE, "flux_fill_mask": LEFT}
INSERT = {f"insert_anything_{name}": image for name, image in zip(running._INSERT, (PICTURE, LEFT, OTHER, RIGHT))}
CONTROL = {"flex_control_image": PICTURE, "flex_control_stop": 1.0, "num_inference_steps": 4}
INPAINT = {"flex_inpaint_image": PICTURE, "flex_inpaint_mask": LEFT}

# By argument: files beside the base, the call, and what changes it.
CASES = {
    "prompt": ((), {}, "a dog"),
    "negative_prompt": ((), GUIDED, "red"),
    "cfg_scale": ((), GUIDED, 0.5),
    "embedded_guidance": ((), {}, 9.0),
    "t5_sequence_length": ((), {}, 24),
    "input_image": ((), {"denoising_strength": 0.3}, PICTURE),
    "denoising_strength": ((), {"input_image": PICTURE}, 0.3),
    "height": ((), {}, 80),
    "width": ((), {}, 80),
    "seed": ((), {}, 1),
    "sigma_shift": ((), {}, 1.0),
    "num_inference_steps": ((), {}, 3),
    "kontext_images": ((), {}, PICTURE),
    "controlnet_inputs": (NETS, {}, net()),
    "ipadapter_images": (IP_ADAPTER, {}, PICTURE),
    "ipadapter_scale": (IP_ADAPTER, {"ipadapter_images": [PICTURE]}, 0.1),
    "eligen_entity_prompts": ((), ENTITIES, ["a red bird"]),
    "eligen_entity_masks": ((), ENTITIES, [RIGHT]),
    "eligen_enable_on_negative": ((), {**ENTITIES, **GUIDED}, True),
    "eligen_enable_inpaint": ((), {**ENTITIES, "input_image": PICTURE}, True),
    "infinityou_id_image": (INFUSE, FACE, PICTURE),
    "infinityou_guidance": (INFUSE, FACE, 9.0),
    "flex_inpaint_image": ("flex", INPAINT, OTHER),
    "flex_inpaint_mask": ("flex", INPAINT, RIGHT),
    "flex_control_image": ("flex", {}, PICTURE),
    "flex_control_strength": ("flex", {"flex_control_image": PICTURE}, 0.9),
    "flex_control_stop": ("flex", {**CONTROL, "flex_control_strength": 3.0}, 0.0),
    "value_controller_inputs": (VALUES, {}, [0.9, 0.1]),
    "lora_encoder_inputs": (ENCODER, {}, LORA),
    "lora_encoder_scale": (ENCODER, {"lora_encoder_inputs": LORA}, 0.1),
    "flux_fill_image": ("fill", HOLE, OTHER),
    "flux_fill_mask": ("fill", HOLE, RIGHT),
    "flux_redux_image": (TOWERS, {}, PICTURE),
    "insert_anything_source_image": ("insert", INSERT, OTHER),
    "insert_anything_source_mask": ("insert", INSERT, RIGHT),
    "insert_anything_ref_image": ("insert", INSERT, PICTURE),
    "insert_anything_ref_mask": ("insert", INSERT, TOP),
    "tiled": ((), {"tile_size": 4, "tile_stride": 2}, True),
    "tile_size": ((), {"tiled": True, "tile_size": 4, "tile_stride": 2}, 5),
    "tile_stride": ((), {"tiled": True, "tile_size": 4, "tile_stride": 2}, 4),
}
"""Not here: `rand_device`, `tea_cache_l1_thresh` and `progress_bar_cmd`, which have tests below, and the references of
Step1X-Edit and Nexus-Gen, which `test_scripts.py` compares."""


def of(files, models):
    """The pipeline with further files."""
    named = {"flex": (FLEX, ()), "fill": (FILL, ()), "insert": (FILL, TOWERS)}
    dit, further = (
        named.get(files, ((DEV, "flux1-dev.safetensors"), files)) if isinstance(files, str) else (None, files)
    )
    return shared(models, *further, **({"dit": dit} if dit else {}))


@pytest.fixture
def small(downloaded, monkeypatch):
    monkeypatch.setattr(running, "DIPTYCH_HEIGHT", 64)
    monkeypatch.setattr(FluxImagePipeline, "_face_encoder", lambda self: OurFaces())
    return downloaded


def with_files(value, root):
    if value == LORA:
        return str(root / LORA / "20.safetensors")
    return value


@pytest.mark.parametrize("name", CASES)
def test_an_argument_changes_the_image(name, small):
    files, call, value = CASES[name]
    pipe = of(files, small)
    call = {key: with_files(given, small) for key, given in call.items()}
    one, other = draw(pipe, **call), draw(pipe, **{**call, name: with_files(value, small)})
    assert one.shape != other.shape or differ(one, other)


def test_every_argument_has_a_test():
    arguments = set(inspect.signature(FluxImagePipeline.__call__).parameters) - {"self"}
    elsewhere = {"rand_device", "tea_cache_l1_thresh", "progress_bar_cmd"}
    compared = {"step1x_reference_image", "nexus_gen_reference_image"}
    assert arguments == CASES.keys() | elsewhere | compared
    assert len(arguments) == 45


def test_a_value_and_a_list_of_one_are_the_same(small):
    pipe = of(VALUES, small)
    assert (draw(pipe, value_controller_inputs=0.9) == draw(pipe, value_controller_inputs=[0.9])).all()
    assert (draw(pipe, kontext_images=PICTURE) == draw(pipe, kontext_images=[PICTURE])).all()


def test_without_a_seed_the_global_generator_draws(small):
    pipe = of((), small)
    torch.manual_seed(3)
    one, other = draw(pipe, seed=None), draw(pipe, seed=None)
    assert differ(one, other)
    torch.manual_seed(3)
    assert (draw(pipe, seed=None) == one).all()
    assert (draw(pipe, seed=3) == one).all()


def test_the_noise_comes_from_the_device(small, monkeypatch):
    pipe, devices, randn = of((), small), [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *args, **kw: devices.append(kw.get("device")) or randn(*args, **kw))
    draw(pipe, rand_device="cpu")
    assert "cpu" in devices
    with pytest.raises(ValueError, match="`rand_device` is 'nowhere'"):
        draw(pipe, rand_device="nowhere")


def test_a_cache_skips_steps_and_is_gone_afterwards(small):
    pipe, calls = of((), small), []
    handle = pipe.native.transformer.transformer_blocks[0].register_forward_hook(lambda *_: calls.append(0))
    plain = draw(pipe, num_inference_steps=4)
    full = len(calls)
    cached = draw(pipe, num_inference_steps=4, tea_cache_l1_thresh=1e4)
    skipped = len(calls) - full
    handle.remove()
    assert (full, skipped) == (4, 2)
    assert differ(plain, cached)
    assert not pipe.native.transformer.is_cache_enabled
    assert (draw(pipe, num_inference_steps=4) == plain).all()


def test_the_progress_bar_sees_the_timesteps_and_may_end_the_loop(small):
    pipe, seen = of((), small), []

    def bar(timesteps):
        for timestep in timesteps:
            seen.append(float(timestep))
            yield timestep
        seen.append("end")

    whole = draw(pipe, num_inference_steps=3, progress_bar_cmd=bar)
    assert [value == "end" for value in seen] == [False] * 3 + [True]
    assert seen[:3] == sorted(seen[:3], reverse=True)
    assert seen[0] == 1000
    cut = draw(pipe, num_inference_steps=3, progress_bar_cmd=lambda timesteps: list(timesteps)[:2])
    assert differ(whole, cut)
    with pytest.raises(TypeError, match="`progress_bar_cmd`"):
        draw(pipe, progress_bar_cmd=None)


def test_sizes_are_rounded_up(small, caplog):
    assert draw(of((), small), height=33, width=49).shape[:2] == (48, 64)
    assert "`height` is 33" in caplog.text


def test_pixels_are_cut_off(small, monkeypatch):
    pipe = of((), small)
    pixels = torch.full((1, 3, 48, 64), 0.1)
    monkeypatch.setattr(pipe.native.vae, "decode", lambda *args, **kwargs: (pixels,))
    # (0.1 + 1) * 127.5 = 140.25, and 0.999... below the next integer stays below.
    assert (draw(pipe) == 140).all()
    pixels.fill_(141.9 / 127.5 - 1)
    assert (draw(pipe) == 141).all()


def test_guidance_below_one_pulls_to_the_negative_prompt(small):
    pipe = of((), small)
    negative = draw(pipe, prompt="ugly")
    assert not differ(draw(pipe, cfg_scale=0.0, negative_prompt="ugly"), negative)
    assert differ(draw(pipe, cfg_scale=0.5, negative_prompt="ugly"), negative)


@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_windows_of_progress(steps):
    for start, end in [(1.0, 0.0), (1.0, 0.5), (0.5, 0.0), (0.7, 0.3), (0.4, 0.41), (0.0, 0.0), (1.0, 1.0)]:
        progress = [(steps - 1 - index) / max(steps - 1, 1) for index in range(steps)]
        wanted = [index for index, at in enumerate(progress) if not (at > start or at < end)]
        found = window(start, end, steps)
        inside = (
            []
            if found is None
            else [i for i in range(steps) if not (i / steps < found[0] or (i + 1) / steps > found[1])]
        )
        assert inside == wanted, (start, end)


def test_a_window_without_a_step_does_nothing(small):
    pipe = of(NETS, small)
    assert (draw(pipe, controlnet_inputs=net(start=0.4, end=0.41)) == draw(pipe)).all()


WRONG = {
    "prompt": (["a", "b"], TypeError, "`prompt` must be one text"),
    "negative_prompt": (None, TypeError, "`negative_prompt`"),
    "cfg_scale": (float("nan"), ValueError, "`cfg_scale`"),
    "embedded_guidance": ("3", TypeError, "`embedded_guidance`"),
    "t5_sequence_length": (513, ValueError, "`t5_sequence_length` is 513; here it is at most 512"),
    "denoising_strength": (0.0, ValueError, "`denoising_strength` is 0.0"),
    "height": (0, ValueError, "`height`"),
    "seed": (1.5, TypeError, "`seed`"),
    "num_inference_steps": (0, ValueError, "`num_inference_steps`"),
    "sigma_shift": (0.0, ValueError, "`shift` is 0.0"),
    "tiled": ("yes", TypeError, "`tiled`"),
    "tea_cache_l1_thresh": (-1.0, ValueError, "threshold"),
    "controlnet_inputs": (net(), ValueError, "`controlnet_inputs` needs a ControlNet's"),
    "ipadapter_images": (PICTURE, ValueError, r"`ipadapter_images` needs `ip-adapter\.bin`"),
    "value_controller_inputs": (0.5, ValueError, "`value_controller_inputs` needs"),
    "step1x_reference_image": (
        PICTURE,
        ValueError,
        r"`step1x_reference_image` needs `step1x-edit-i1258\.safetensors`",
    ),
    "nexus_gen_reference_image": (PICTURE, ValueError, "`nexus_gen_reference_image` needs"),
    "lora_encoder_inputs": ("x.safetensors", ValueError, "`lora_encoder_inputs` needs"),
    "flux_redux_image": (PICTURE, ValueError, "`flux_redux_image` needs"),
    "flux_fill_image": (PICTURE, ValueError, "`flux_fill_image` was given without `flux_fill_mask`"),
    "flex_inpaint_mask": (LEFT, ValueError, "`flex_inpaint_mask` was given without `flex_inpaint_image`"),
    "flex_control_image": (PICTURE, ValueError, r"`flex_control_image` needs `Flex\.2-preview"),
    "eligen_entity_prompts": (["a"], ValueError, "`eligen_entity_prompts` was given without `eligen_entity_masks`"),
    "infinityou_id_image": (PICTURE, ValueError, "`infinityou_id_image` needs `image_proj_model.bin`"),
    "insert_anything_source_image": (PICTURE, ValueError, "`insert_anything_source_mask`.*are missing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_named_before_the_first_step(name, small, monkeypatch):
    value, error, words = WRONG[name]
    pipe = of((), small)
    monkeypatch.setattr(pipe.native, "denoise", None)
    with pytest.raises(error, match=words):
        draw(pipe, **{name: value})


def test_wrong_inputs_of_controlnets(small):
    pipe = of(NETS, small)
    for fields, error, words in (
        ({"controlnet_id": 9}, ValueError, "`controlnet_id` of `controlnet_inputs\\[0\\]` is 9, but 3"),
        ({"image": None}, TypeError, "`image` of `controlnet_inputs"),
        ({"start": "early"}, TypeError, "`start` of `controlnet_inputs"),
    ):
        with pytest.raises(error, match=words):
            draw(pipe, controlnet_inputs=[ControlNetInput(**{"controlnet_id": 2, "image": PICTURE, **fields})])
    with pytest.raises(TypeError, match="expected a `ControlNetInput`"):
        draw(pipe, controlnet_inputs=[PICTURE])
    with pytest.raises(ValueError, match="`mode`"):
        draw(pipe, controlnet_inputs=[ControlNetInput(controlnet_id=1, image=PICTURE)])


def test_surplus_values_are_refused(small):
    with pytest.raises(ValueError, match="3 values, but 2 encoders"):
        draw(of(VALUES, small), value_controller_inputs=[0.1, 0.2, 0.3])


def test_what_has_no_effect_is_said(small, caplog):
    with caplog.at_level(logging.WARNING):
        draw(of((), small), ipadapter_scale=0.5)
        draw(of(NETS, small), controlnet_inputs=net(inpaint_image=PICTURE))
    assert "`ipadapter_scale` has no effect without `ipadapter_images`" in caplog.text
    assert "`inpaint_image` of `controlnet_inputs[0]` has no effect" in caplog.text


def test_inpainting_by_entities_needs_an_image_and_keeps_the_rest(small):
    pipe = of((), small)
    with pytest.raises(ValueError, match="`eligen_enable_inpaint` redraws"):
        draw(pipe, **ENTITIES, eligen_enable_inpaint=True)
    drawn = draw(pipe, **ENTITIES, eligen_enable_inpaint=True, input_image=PICTURE)
    kept = np.asarray(PICTURE).astype(int)
    assert np.abs(drawn[:, 32:] - kept[:, 32:]).max() <= 1
    assert differ(drawn[:, :32], kept[:, :32])


def test_a_prompt_needs_encoders_and_tokenizers(small):
    bare = load(ModelConfig(model_id=DEV, origin_file_pattern="flux1-dev.safetensors"))
    with pytest.raises(ValueError, match=r"`ae\.safetensors` \(the vae\)"):
        draw(bare)
    silent = load(
        *[ModelConfig(model_id=DEV, origin_file_pattern=name) for name in ("flux1-dev.safetensors", "ae.safetensors")]
    )
    with pytest.raises(ValueError, match=r"\['text_encoder', 'text_encoder_2'\] are not among"):
        draw(silent)
    mute = load(*silent_and_texts(), tokenizer_2_config=None)
    with pytest.raises(ValueError, match="`tokenizer_2_config` was None"):
        draw(mute)


def silent_and_texts():
    names = (
        "flux1-dev.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/*.safetensors",
        "ae.safetensors",
    )
    return [ModelConfig(model_id=DEV, origin_file_pattern=name) for name in names]


def test_a_language_model_without_the_decoder_that_is_asked(small):
    pipe = shared(small, (NEXUS, "model*.safetensors"))
    with pytest.raises(ValueError, match=r"generation_decoder\.bin"):
        draw(pipe)
    with pytest.raises(ValueError, match=r"edit_decoder\.bin"):
        draw(pipe, nexus_gen_reference_image=PICTURE)


def test_bfloat16_is_finite_and_changes_little(small):
    pipe = FluxImagePipeline.from_pretrained(device="cpu", model_configs=silent_and_texts())
    assert pipe.dit.dtype == torch.bfloat16
    assert np.abs(draw(pipe) - draw(of((), small))).mean() < 20


def test_two_calls_at_once_keep_their_shifts(small):
    from concurrent.futures import ThreadPoolExecutor

    pipe, shifts = of((), small), [None, 1.0, 5.0]
    alone = [draw(pipe, sigma_shift=shift) for shift in shifts]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda shift: draw(pipe, sigma_shift=shift), shifts))
    for one, other in zip(alone, together):
        assert (one == other).all()


TOGETHER = {
    "fill": ("fill", {**HOLE, "kontext_images": PICTURE}),
    "flex": ("flex", {**INPAINT, "kontext_images": PICTURE}),
    "entities": (
        (*VALUES, *ENCODER, *TOWERS),
        {**ENTITIES, "kontext_images": PICTURE, "value_controller_inputs": 0.4, "flux_redux_image": PICTURE}
        | {"lora_encoder_inputs": LORA},
    ),
    "another size": (NETS, {"controlnet_inputs": net(image=PICTURE.resize((30, 40)))}),
}
"""What raises in the reference and runs here, as docs/migration.md says."""


@pytest.mark.parametrize("name", TOGETHER)
def test_what_runs_together_here(name, small):
    files, call = TOGETHER[name]
    pipe = of(files, small)
    call = {key: with_files(given, small) for key, given in call.items()}
    drawn = draw(pipe, **call)
    for left_out in set(call) & {"kontext_images", "controlnet_inputs", "flux_redux_image"}:
        assert differ(drawn, draw(pipe, **{key: value for key, value in call.items() if key != left_out}))
