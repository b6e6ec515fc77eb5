"""InfiniteYou: faces, key points, embeddings, presets, and what is refused."""

import logging

import pytest
import torch
from PIL import Image

from benchmarks.support.tiny.controlnet import PICTURE, tiny_controlnet
from benchmarks.support.tiny.infinite_you import (
    POINTS,
    ColorFaceEncoder,
    face,
    identity,
    tiny_identity_modules,
    tiny_projector,
)
from diffusers_flux_ext import (
    FluxInfiniteYouPipeline,
    InfiniteYouIdentity,
    draw_face_keypoints,
    infinite_you_preset,
)
from diffusers_flux_ext.methods.infinite_you import condition as infinite_you_identity
from diffusers_flux_ext.testing import call_kwargs, different, tiny_pipeline


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
LEFT, RIGHT = (0.0, 0.0, 1 / 3, 1.0), (1 / 3, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxInfiniteYouPipeline, **tiny_identity_modules(), face_encoder=ColorFaceEncoder())


@pytest.fixture
def warnings(caplog):
    logger = logging.getLogger("diffusers_flux_ext.methods.infinite_you.faces")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


class TestFaces:
    def test_control_pictures_are_fitted_and_drawn(self, pipe):
        encoder = ColorFaceEncoder()
        condition = identity(pipe, control_image=PICTURE, face_encoder=encoder)
        images = pipe(**call_kwargs(conditions=[condition])).images
        (seen,) = encoder.seen
        assert seen.size == (48, 32)
        assert seen.getpixel((24, 16)) == PICTURE.resize((48, 32), Image.Resampling.LANCZOS).getpixel((24, 16))
        points = encoder.encode(seen).keypoints
        same = pipe(**call_kwargs(conditions=[identity(pipe, keypoints=points)])).images
        assert torch.equal(images, same)

    def test_a_drawing_is_taken_as_it_is(self, pipe):
        drawing = draw_face_keypoints(POINTS, 48, 32)
        drawn, given = (
            pipe(**call_kwargs(conditions=[identity(pipe, keypoints=points)])).images for points in (POINTS, drawing)
        )
        assert torch.equal(drawn, given)

    def test_key_points_in_fractions(self, pipe):
        fractions = POINTS / (48, 32)
        images = [
            pipe(**call_kwargs(conditions=[identity(pipe, keypoints=points)])).images for points in (POINTS, fractions)
        ]
        assert torch.equal(*images)

    def test_choosing_a_face(self, pipe, warnings):
        boxes = [(60, 0, 160, 100), (0, 0, 60, 60)]
        encoder = ColorFaceEncoder(boxes)
        largest = pipe(**call_kwargs(conditions=[identity(pipe, id_image=PICTURE, face_encoder=encoder)])).images
        assert "2 faces were found; the largest is used" in warnings.text
        left, right = (
            pipe(
                **call_kwargs(conditions=[identity(pipe, id_image=PICTURE, face_encoder=encoder, face_index=index)])
            ).images
            for index in (0, 1)
        )
        assert torch.equal(largest, right)
        assert different(left, right)

    def test_a_small_face_warns(self, pipe, warnings):
        encoder = ColorFaceEncoder([(10, 10, 40, 50)])
        pipe(**call_kwargs(conditions=[identity(pipe, id_image=PICTURE, face_encoder=encoder)]))
        assert "only 30 x 40 pixels" in warnings.text

    def test_no_face_is_an_error(self, pipe):
        encoder = ColorFaceEncoder([])
        with pytest.raises(ValueError, match="No face was found"):
            pipe(**call_kwargs(conditions=[identity(pipe, id_image=PICTURE, face_encoder=encoder)]))

    def test_a_face_that_is_not_there(self, pipe):
        with pytest.raises(ValueError, match="`face_index` is 3, but 1 faces"):
            pipe(
                **call_kwargs(
                    conditions=[identity(pipe, id_image=PICTURE, face_encoder=ColorFaceEncoder(), face_index=3)]
                )
            )

    def test_pictures_of_other_modes(self, pipe):
        images = [pipe(**call_kwargs(id_image=image)).images for image in (PICTURE, PICTURE.convert("RGBA"))]
        assert torch.equal(*images)


BAD = {
    "nothing": ({"id_embeds": None}, ValueError, "`id_image` of InfiniteYouIdentity.*is required"),
    "both identities": (
        {"id_image": PICTURE, "id_embeds": face()},
        ValueError,
        "`id_image` .*`id_embeds` .*both given",
    ),
    "both poses": (
        {"control_image": PICTURE, "keypoints": POINTS},
        ValueError,
        "`control_image` .*and `keypoints` .*both given",
    ),
    "no encoder": ({"id_image": PICTURE, "id_embeds": None}, ValueError, r"face_encoder.*\[infinite-you\]"),
    "a wide embedding": (
        {"id_embeds": torch.zeros(512)},
        ValueError,
        r"shape \(16,\), or \(prompts, 16\), got \(512,\)",
    ),
    "four points": ({"keypoints": POINTS[:4]}, ValueError, r"shape \(4, 2\); expected \(5, 2\)"),
    "a window turned round": ({"start": 0.5, "end": 0.5}, ValueError, "start < end"),
    "a wrong branch": ({"negative": "zeros"}, ValueError, "got 'zeros'"),
    "a face without a picture": ({"face_index": 0}, ValueError, "`face_index` of InfiniteYouIdentity"),
    "a scale that is no number": ({"scale": float("nan")}, ValueError, "must be a finite number"),
    "no projector": ({"image_projector": torch.nn.Linear(2, 2)}, TypeError, "`image_projector`.*Linear"),
    "no face encoder": ({"face_encoder": "arcface"}, TypeError, "is a str; expected a"),
    "a union": ({"controlnet": tiny_controlnet(0, "union")}, ValueError, "a union of several modes"),
    "inpainting": ({"controlnet": tiny_controlnet(0, "inpaint")}, ValueError, "made for inpainting"),
    "XLabs": ({"controlnet": tiny_controlnet(0, "xlabs")}, ValueError, "one of XLabs'"),
    "no controlnet": ({"controlnet": torch.nn.Linear(2, 2)}, TypeError, "Linear without"),
    "too many embeddings": ({"id_embeds": torch.zeros(3, 16)}, ValueError, "3 samples, but there are 1 prompts"),
    "a path": (
        {"id_image": "her.png", "id_embeds": None, "face_encoder": ColorFaceEncoder()},
        TypeError,
        "`id_image` .*got 'her.png'",
    ),
    "another width": (
        {"image_projector": tiny_projector(0, output_dim=48)},
        ValueError,
        "joint_attention_dim 40 instead of 48",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(pipe, arguments, error, message):
    modules = {"controlnet": pipe.controlnet, "image_projector": pipe.image_projector, "id_embeds": face()}
    with pytest.raises(error, match=message):
        pipe(**call_kwargs(conditions=[InfiniteYouIdentity(**{**modules, **arguments})]))


def test_a_control_image_without_identity(pipe):
    with pytest.raises(ValueError, match="`control_image` was given without an identity"):
        pipe(**call_kwargs(control_image=PICTURE))


ALONE = {
    "id_guidance_scale": 2.0,
    "controlnet_conditioning_scale": [0.5, 0.2, 0.1],
    "control_guidance_start": 0.1,
    "keypoints": POINTS,
    "face_index": 0,
    "region": LEFT,
    "negative": "own",
}


@pytest.mark.parametrize("name", ALONE)
def test_arguments_without_an_identity(pipe, name):
    with pytest.raises(ValueError, match=f"`{name}` was given without an identity"):
        pipe(**call_kwargs(**{name: ALONE[name]}))


def test_the_call_passes_on_all_fields(pipe):
    named = {"keypoints": POINTS, "region": LEFT, "negative": "own"}
    images = pipe(**call_kwargs(id_embeds=face(), **named, **GUIDED)).images
    assert torch.equal(images, pipe(**call_kwargs(conditions=[identity(pipe, **named)], **GUIDED)).images)


def test_embeddings_as_arrays_and_lists(pipe):
    expected = pipe(**call_kwargs(id_embeds=face())).images
    for given in (face().numpy(), face().tolist(), [face().numpy()]):
        assert torch.equal(pipe(**call_kwargs(id_embeds=given)).images, expected)


@pytest.mark.parametrize(("factor", "warned"), [(1.0, False), (20.0, True)])
def test_an_embedding_of_another_length_warns(pipe, monkeypatch, factor, warned):
    seen = []
    monkeypatch.setattr(infinite_you_identity.logger, "warning", seen.append)
    pipe(**call_kwargs(id_embeds=factor * torch.nn.functional.normalize(face(), dim=0)))
    assert ["length 1" in text for text in seen] == [True] * warned


def test_presets(pipe):
    released, similar = infinite_you_preset("aes_stage2"), infinite_you_preset("sim_stage1")
    assert (released["num_inference_steps"], released["controlnet_conditioning_scale"]) == (30, 1.0)
    assert similar["control_guidance_start"] == released["control_guidance_start"] == 0.0
    arguments = {**call_kwargs(id_embeds=face()), **similar, "num_inference_steps": 3}
    pipe(**arguments)
    with pytest.raises(ValueError, match=r"\['aes_stage2', 'sim_stage1'\]"):
        infinite_you_preset("stage3")


def test_drawing_takes_tensors_and_clips():
    picture = draw_face_keypoints(torch.from_numpy(POINTS) - 20, 48, 32)
    assert picture.size == (48, 32)
