"""Without conditions the composable pipeline is diffusers' pipeline, bit for bit."""

import logging

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image

from diffusers_flux_ext import FluxConditionedPipeline, FluxFlowMatchScheduler
from diffusers_flux_ext.testing import call_kwargs, quiet, seeded, tiny_components, tiny_pipeline


@pytest.fixture(scope="module")
def pipes():
    components = tiny_components(0)
    classes = (FluxPipeline, FluxConditionedPipeline, FluxImg2ImgPipeline)
    return [quiet(pipeline_class(**components)) for pipeline_class in classes]


def embeds(pipe, prompts):
    return dict(
        zip(("prompt_embeds", "pooled_prompt_embeds"), pipe.encode_prompt(prompts, max_sequence_length=16)[:2])
    )


TEXT_TO_IMAGE = {
    "plain": {},
    "batch": {"prompt": ["a cat", "a red dog"]},
    "images per prompt": {"prompt": ["a cat", "a red dog"], "num_images_per_prompt": 2},
    "true cfg": {"negative_prompt": "ugly", "true_cfg_scale": 3.0},
    "true cfg batch": {"prompt": ["a cat", "a dog"], "negative_prompt": ["ugly", "low"], "true_cfg_scale": 2.0},
    "second prompt": {"prompt_2": "a blue car"},
    "sigmas": {"sigmas": [1.0, 0.5, 0.2]},
    "latents": {"latents": torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(5))},
    "latent output": {"output_type": "latent"},
    "generators": {"prompt": ["a", "b"], "generator": [torch.Generator().manual_seed(s) for s in (1, 2)]},
    "guidance": {"guidance_scale": 1.0},
    "odd size": {"height": 40, "width": 50},
}


@pytest.mark.parametrize("arguments", TEXT_TO_IMAGE.values(), ids=TEXT_TO_IMAGE)
def test_text_to_image_is_bit_equal(pipes, arguments):
    results = []
    for pipe in pipes[:2]:
        fresh = call_kwargs(**arguments)
        if isinstance(fresh["generator"], list):
            fresh["generator"] = [seeded(s) for s in (1, 2)]
        results.append(pipe(**fresh).images)
    assert torch.equal(*results)


def test_prompt_embeds_are_bit_equal(pipes):
    given = {**embeds(pipes[0], ["a cat"]), "prompt": None, "true_cfg_scale": 2.0}
    negative = embeds(pipes[0], ["ugly"])
    given |= {f"negative_{name}": value for name, value in negative.items()}
    assert torch.equal(*(pipe(**call_kwargs(**given)).images for pipe in pipes[:2]))


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("kind", ["picture", "batch", "latents"])
def test_image_to_image_is_bit_equal(pipes, strength, kind):
    image = {
        "picture": Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 20).convert("RGB"),
        "batch": torch.rand(2, 3, 32, 48, generator=seeded(1)),
        "latents": torch.randn(1, 16, 4, 6, generator=seeded(2)),
    }[kind]
    arguments = {"prompt": ["a cat", "a dog"], "image": image, "strength": strength, "num_inference_steps": 4}
    results = [pipe(**call_kwargs(**arguments, guidance_scale=3.5)).images for pipe in pipes[1:]]
    assert torch.equal(*results)


def test_each_prompt_keeps_its_picture_with_several_images_per_prompt(pipes):
    latents = torch.randn(2, 16, 4, 6, generator=seeded(1))
    arguments = {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2, "strength": 0.5, "output_type": "latent"}
    both, first, second = (
        pipes[1](**call_kwargs(image=image, **arguments)).images for image in (latents, latents[:1], latents[1:])
    )
    torch.testing.assert_close(both, torch.cat([first[:2], second[2:]]))
    assert (first - second).abs().max() > 0.1


def test_embeddings_serve_several_images_per_prompt(pipes):
    given = {**embeds(pipes[1], ["a cat", "a dog"]), "prompt": None, "num_images_per_prompt": 2}
    texts = {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2}
    assert torch.equal(pipes[1](**call_kwargs(**given)).images, pipes[1](**call_kwargs(**texts)).images)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_any_mode_start_image_to_image(pipes, mode):
    picture = Image.effect_mandelbrot((48, 32), (-2, -1, 1, 1), 20).convert(mode)
    rgb = picture.convert("RGB")
    results = [pipes[1](**call_kwargs(image=image, strength=0.5)).images for image in (picture, rgb)]
    assert torch.equal(*results)


def test_integer_pictures_count_to_255(pipes):
    picture = Image.effect_mandelbrot((48, 32), (-2, -1, 1, 1), 20).convert("RGB")
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)[None]
    results = [pipes[1](**call_kwargs(image=image, strength=0.5)).images for image in (picture, array, tensor)]
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(results[0], results[2], atol=1e-5, rtol=0)


def test_a_guidance_scale_without_a_negative_prompt_warns(pipes, caplog):
    pipes[1](**call_kwargs(true_cfg_scale=3.0))
    assert "has no effect without `negative_prompt`" in caplog.text


def test_callbacks_see_and_change_the_same_things(pipes):
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append((index, float(timestep), sorted(tensors), tensors["latents"].sum().item()))
        return {"latents": tensors["latents"] * 0.5, "prompt_embeds": tensors["prompt_embeds"] * 0.9}

    names = ["latents", "prompt_embeds"]
    results = [
        pipe(**call_kwargs(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)).images
        for pipe in pipes[:2]
    ]
    assert torch.equal(*results)
    assert len(seen) == 6
    assert seen[:3] == seen[3:]


def test_interrupt_stops_the_loop(pipes):
    def callback(pipe, index, timestep, tensors):
        pipe._interrupt = index == 0
        return tensors

    results = [
        pipe(**call_kwargs(callback_on_step_end=callback, output_type="latent", num_inference_steps=5)).images
        for pipe in pipes[:2]
    ]
    assert torch.equal(*results)
    full = pipes[1](**call_kwargs(output_type="latent", num_inference_steps=5)).images
    assert not torch.equal(results[1], full)


def test_a_size_that_does_not_divide_is_rounded_with_a_warning(pipes, caplog):
    logger = logging.getLogger("diffusers_flux_ext.pipeline.call_inputs")
    logger.addHandler(caplog.handler)
    try:
        images = pipes[1](**call_kwargs(height=40, width=50)).images
    finally:
        logger.removeHandler(caplog.handler)
    assert images.shape[2:] == (32, 48)
    assert "32 high and 48 wide" in caplog.text


def test_the_users_attention_kwargs_are_not_changed(pipes):
    given = {"scale": 1.0}
    pipes[1](**call_kwargs(joint_attention_kwargs=given))
    assert given == {"scale": 1.0}


def test_processors_are_back_after_a_call(pipes):
    before = [id(processor) for processor in pipes[1].transformer.attn_processors.values()]
    pipes[1](**call_kwargs())
    assert [id(processor) for processor in pipes[1].transformer.attn_processors.values()] == before


def test_the_package_scheduler_runs_its_own_grid():
    pipe = tiny_pipeline(FluxConditionedPipeline, scheduler=FluxFlowMatchScheduler())
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append(float(timestep))
        return tensors

    pipe(**call_kwargs(callback_on_step_end=callback, num_inference_steps=4))
    expected = FluxFlowMatchScheduler()
    expected.set_timesteps(4)
    assert seen == expected.timesteps.tolist()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"height": 8}, ValueError, "at least 16 pixels"),
        ({"conditions": ["a cat"]}, TypeError, r"\['str'\]"),
        ({"image": torch.zeros(1, 3, 32, 48), "strength": 2.0}, ValueError, "from 0 to 1"),
        ({"image": torch.zeros(1, 3, 32, 48), "strength": 0.0}, ValueError, "no step is left"),
        ({"image": torch.zeros(3, 3, 32, 48), "prompt": ["a", "b"]}, ValueError, "3 images.*2 prompts"),
        (
            {"negative_prompt": ["a", "b", "c"], "true_cfg_scale": 2.0, "prompt": ["a", "b"]},
            ValueError,
            "`negative_prompt` has 3 texts",
        ),
        ({"prompt": None}, ValueError, "Provide either"),
        ({"latents": torch.zeros(1, 16, 4, 6)}, ValueError, r"`latents` must have the shape .*got \(1, 16, 4, 6\)"),
        ({"latents": torch.zeros(2, 6, 64)}, ValueError, r"\(2, 6, 64\)"),
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be from 1 .*got 0"),
        ({"ip_adapter_image": Image.new("RGB", (8, 8))}, ValueError, "no IP-Adapter is loaded"),
        ({"callback_on_step_end_tensor_inputs": ["velocity"]}, ValueError, "velocity"),
    ],
)
def test_bad_input(pipes, arguments, error, message):
    with pytest.raises(error, match=message):
        pipes[1](**call_kwargs(**arguments))


def test_bfloat16_is_finite():
    pipe = tiny_pipeline(FluxConditionedPipeline).to(torch.bfloat16)
    images = pipe(**call_kwargs(negative_prompt="ugly", true_cfg_scale=2.0)).images
    assert torch.isfinite(images.float()).all()


def test_return_dict(pipes):
    images = pipes[1](**call_kwargs(return_dict=False))
    assert isinstance(images, tuple)
    assert images[0].shape == (1, 3, 32, 48)
