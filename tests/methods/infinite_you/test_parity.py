"""InfiniteYou against the reference's: projector, InfuseNet with identity tokens, guidance of its own, true CFG."""

import pytest
import torch
from PIL import Image

from benchmarks.support.parity.loop import TOLERANCE, our_images, reference_images
from benchmarks.support.reference import (
    EmbeddedFace,
    controlnet_input,
    reference_multi_controlnet,
    reference_pair,
    reference_projector,
)
from benchmarks.support.tiny.infinite_you import POINTS, face, tiny_identity_modules, tiny_projector
from diffusers_flux_ext import FluxFlowMatchScheduler, FluxInfiniteYouPipeline, draw_face_keypoints
from diffusers_flux_ext.methods.infinite_you.condition import InfiniteYouIdentity
from diffusers_flux_ext.testing import quiet


@pytest.fixture(scope="module")
def pair():
    both = reference_pair(seed=3)
    modules = tiny_identity_modules()
    ours = FluxInfiniteYouPipeline(**{**both.components, "scheduler": FluxFlowMatchScheduler()}, **modules)
    both.reference.controlnet = reference_multi_controlnet([modules["controlnet"]], ours.transformer)
    both.reference.image_proj_model = reference_projector(modules["image_projector"])
    both.reference.infinityou_processor = EmbeddedFace()
    return both.reference, quiet(ours)


@pytest.mark.parametrize("overrides", [{}, {"depth": 4, "num_queries": 8, "heads": 2, "ff_mult": 4}])
def test_the_projector(overrides):
    projector = tiny_projector(3, **overrides)
    embeds = torch.stack([face(0), face(1)])[:, None]
    torch.testing.assert_close(projector(embeds), reference_projector(projector)(embeds), atol=1e-4, rtol=0)


def theirs(picture, scale, guidance, **arguments):
    return {
        "controlnet_inputs": [controlnet_input(image=picture, scale=scale)],
        "infinityou_id_image": face(4),
        "infinityou_guidance": guidance,
        **arguments,
    }


@pytest.mark.parametrize(("scale", "guidance"), [(0.7, 1.0), (0.7, 4.0), (0.3, 1.0)])
def test_black_control_picture(pair, scale, guidance):
    reference, ours = pair
    expected = reference_images(reference, theirs(Image.new("RGB", (64, 48)), scale, guidance)).clamp(-1, 1)
    arguments = {"controlnet_conditioning_scale": scale, "id_guidance_scale": guidance}
    images = our_images(ours, id_embeds=face(4), **arguments)
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
    assert (images - our_images(ours)).abs().max() > 0.01


def test_key_points(pair):
    reference, ours = pair
    picture = draw_face_keypoints(POINTS, 64, 48)
    expected = reference_images(reference, theirs(picture, 0.7, 1.0)).clamp(-1, 1)
    identity = InfiniteYouIdentity(
        ours.controlnet, ours.image_projector, id_embeds=face(4), keypoints=POINTS, scale=0.7
    )
    images = our_images(ours, conditions=[identity])
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
    assert (images - our_images(ours, id_embeds=face(4), controlnet_conditioning_scale=0.7)).abs().max() > 0.01


def test_true_cfg_with_residuals_on_both_branches(pair):
    reference, ours = pair
    guided = {"negative_prompt": "ugly", "cfg_scale": 2.0}
    expected = reference_images(reference, theirs(Image.new("RGB", (64, 48)), 0.7, 1.0, **guided)).clamp(-1, 1)
    identity = InfiniteYouIdentity(ours.controlnet, ours.image_projector, id_embeds=face(4), scale=0.7, negative="own")
    guided = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
    torch.testing.assert_close(our_images(ours, conditions=[identity], **guided), expected, atol=TOLERANCE, rtol=0)
