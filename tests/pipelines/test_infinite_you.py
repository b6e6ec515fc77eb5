"""InfiniteYou: laws, regions, batches, faces, inputs, saving and sharing."""

import logging

import pytest
import torch
from diffusers import DiffusionPipeline, FluxControlNetPipeline, FluxPipeline
from PIL import Image

import diffusers_flux_ext
from diffusers_flux_ext import (
    ControlNetImage,
    EntityRegions,
    FluxConditionedPipeline,
    FluxInfiniteYouPipeline,
    InfiniteYouIdentity,
    InfiniteYouImageProjector,
    InpaintRegion,
    IPAdapterImages,
    draw_face_keypoints,
    infinite_you_preset,
)
from diffusers_flux_ext._compat import offload_all_but
from diffusers_flux_ext.conditions import infinite_you_identity
from tests.fixtures.controlnet import OTHER_PICTURE, PICTURE, tiny_controlnet
from tests.fixtures.infinite_you import POINTS, ColorFaceEncoder, face, tiny_identity_modules, tiny_projector
from tests.fixtures.ip_adapter import picture, tiny_ip_adapter, tiny_siglip
from tests.fixtures.offload import watch_card
from tests.fixtures.synthetic import AddedReference, AddedText
from tests.fixtures.tiny import call_kwargs, quiet, seeded, tiny_pipeline
from tests.pipelines.test_controlnet import watch_transformer


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
LEFT, RIGHT = (0.0, 0.0, 1 / 3, 1.0), (1 / 3, 0.0, 1.0, 1.0)
LEFT_TOKENS = [True, False, False, True, False, False]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxInfiniteYouPipeline, **tiny_identity_modules(), face_encoder=ColorFaceEncoder())


@pytest.fixture
def warnings(caplog):
    logger = logging.getLogger("diffusers_flux_ext.models.face_encoder")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def identity(pipe, seed=0, **arguments):
    given = {} if "id_image" in arguments else {"id_embeds": face(seed)}
    return InfiniteYouIdentity(pipe.controlnet, pipe.image_projector, **{**given, **arguments})


def different(one, other):
    return bool((one - other).abs().max() > 1e-4)


class TestLaws:
    def test_no_identity_is_the_plain_pipeline(self, pipe):
        plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
        assert torch.equal(pipe(**call_kwargs()).images, plain(**call_kwargs()).images)

    def test_scale_zero_is_no_identity(self, pipe):
        images = pipe(**call_kwargs(id_embeds=face(), controlnet_conditioning_scale=0.0, **GUIDED)).images
        assert torch.equal(images, pipe(**call_kwargs(**GUIDED)).images)

    def test_the_named_pipeline_is_the_condition(self, pipe):
        named = {
            "control_image": OTHER_PICTURE, "id_guidance_scale": 2.0, "controlnet_conditioning_scale": 0.7,
            "control_guidance_start": 0.3, "control_guidance_end": 0.7,
        }  # fmt: skip
        condition = identity(
            pipe, id_image=PICTURE, control_image=OTHER_PICTURE, face_encoder=pipe.face_encoder, guidance_scale=2.0,
            scale=0.7, start=0.3, end=0.7,
        )  # fmt: skip
        images = pipe(**call_kwargs(id_image=PICTURE, **named)).images
        assert torch.equal(images, pipe(**call_kwargs(conditions=[condition])).images)
        assert different(images, pipe(**call_kwargs()).images)

    def test_an_identity_is_a_controlnet_that_sees_other_tokens(self, pipe, monkeypatch):
        """diffusers' pipeline with the identity tokens in the place of the ControlNet's text, as the original."""
        stock = quiet(pipe.to_pipeline(FluxControlNetPipeline))
        tokens = pipe.image_projector(face()[None, None])
        forward = pipe.controlnet.forward

        def with_identity(*args, **kwargs):
            kwargs["encoder_hidden_states"] = tokens
            kwargs["txt_ids"] = torch.zeros(tokens.shape[1], 3)
            kwargs["guidance"] = torch.ones(1)
            return forward(*args, **kwargs)

        latents = torch.randn(1, 6, 64, generator=seeded(1))
        black = pipe.image_processor.preprocess(Image.new("RGB", (48, 32))).contiguous()
        shared = {"latents": latents, "guidance_scale": 3.5}
        with monkeypatch.context() as patch:
            patch.setattr(pipe.controlnet, "forward", with_identity)
            patch.setattr(
                "diffusers.pipelines.flux.pipeline_flux_controlnet.retrieve_latents",
                lambda output, generator=None: output.latent_dist.mode(),
            )
            expected = stock(**call_kwargs(control_image=black, controlnet_conditioning_scale=0.7, **shared)).images
        images = pipe(**call_kwargs(id_embeds=face(), controlnet_conditioning_scale=0.7, **shared)).images
        assert torch.equal(images, expected)

    def test_nothing_on_the_negative_side_by_default(self, pipe, monkeypatch):
        seen = []
        forward = pipe.transformer.forward
        monkeypatch.setattr(
            pipe.transformer,
            "forward",
            lambda **kwargs: seen.append("controlnet_block_samples" in kwargs) or forward(**kwargs),
        )
        pipe(**call_kwargs(id_embeds=face(), num_inference_steps=2, **GUIDED))
        assert seen == [True, False, True, False]
        seen.clear()
        pipe(**call_kwargs(conditions=[identity(pipe, negative="own")], num_inference_steps=1, **GUIDED))
        pipe(**call_kwargs(conditions=[identity(pipe, negative="shared")], num_inference_steps=1, **GUIDED))
        assert seen == [True] * 4

    def test_the_text_does_not_reach_infusenet_but_the_identity_does(self, pipe):
        seen = []
        handle = pipe.controlnet.register_forward_hook(
            lambda module, args, kwargs, output: seen.append(kwargs), with_kwargs=True
        )
        for prompt, seed in (("a cat", 0), ("a dog", 0), ("a dog", 1)):
            pipe(**call_kwargs(prompt=prompt, id_embeds=face(seed), num_inference_steps=1))
        handle.remove()
        tokens = [kwargs["encoder_hidden_states"] for kwargs in seen]
        assert torch.equal(tokens[0], tokens[1])
        assert different(tokens[1], tokens[2])
        assert float(seen[0]["txt_ids"].abs().max()) == 0
        assert seen[0]["guidance"].tolist() == [1.0]


class TestRegions:
    def test_each_region_gets_its_own_residuals_only(self, pipe, monkeypatch):
        seen = watch_transformer(pipe, monkeypatch)

        def residuals(*conditions):
            pipe(**call_kwargs(conditions=list(conditions), num_inference_steps=1))
            return [*seen["controlnet_block_samples"], *seen["controlnet_single_block_samples"]]

        left = torch.tensor(LEFT_TOKENS)
        both = residuals(identity(pipe, 0, region=LEFT), identity(pipe, 1, region=RIGHT))
        first, second = residuals(identity(pipe, 0)), residuals(identity(pipe, 1))
        third = residuals(identity(pipe, 0, region=LEFT), identity(pipe, 2, region=RIGHT))
        # The single residual of the ControlNet's double block is spread over both double blocks when two are summed.
        first, second = ([parts[0], parts[0], *parts[1:]][: len(both)] for parts in (first, second))
        singles = (0, 0, 1)
        for index, mixed in enumerate(both[:2]):
            assert torch.equal(mixed[:, left], first[0][:, left])
            assert torch.equal(mixed[:, ~left], second[0][:, ~left])
            assert torch.equal(mixed[:, left], third[index][:, left])
            assert different(mixed[:, ~left], third[index][:, ~left])
        for mixed, source in zip(both[2:], singles):
            assert torch.equal(mixed[:, left], first[2 + source][:, left])
            assert torch.equal(mixed[:, ~left], second[2 + source][:, ~left])

    def test_changing_one_identity_leaves_the_residuals_of_the_other(self, pipe):
        images = [
            pipe(
                **call_kwargs(
                    conditions=[identity(pipe, 0, region=LEFT), identity(pipe, seed, region=RIGHT)],
                    prompt="two friends",
                )
            ).images
            for seed in (1, 2)
        ]
        assert different(*images)

    def test_the_same_identity_in_two_halves_is_one_identity(self, pipe):
        halves = [identity(pipe, 0, region=LEFT), identity(pipe, 0, region=RIGHT)]
        images = [pipe(**call_kwargs(conditions=conditions)).images for conditions in (halves, [identity(pipe, 0)])]
        torch.testing.assert_close(*images, atol=1e-5, rtol=0)


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
        with pytest.raises(ValueError, match="Face 3 was asked for, but 1 faces"):
            pipe(
                **call_kwargs(
                    conditions=[identity(pipe, id_image=PICTURE, face_encoder=ColorFaceEncoder(), face_index=3)]
                )
            )

    def test_pictures_of_other_modes(self, pipe):
        images = [pipe(**call_kwargs(id_image=image)).images for image in (PICTURE, PICTURE.convert("RGBA"))]
        assert torch.equal(*images)


class TestBatches:
    def test_faces_and_key_points_per_prompt(self, pipe):
        latents = torch.randn(4, 6, 64, generator=seeded(1))
        points = torch.stack([torch.from_numpy(POINTS), torch.from_numpy(POINTS) + 3])
        embeds = torch.stack([face(0), face(1)])
        condition = identity(pipe, id_embeds=embeds, keypoints=points, region=[LEFT, RIGHT])
        prompts = ["a man", "a woman"]
        together = pipe(
            **call_kwargs(prompt=prompts, num_images_per_prompt=2, latents=latents, conditions=[condition])
        ).images
        for index in range(4):
            which = index // 2
            one = identity(pipe, id_embeds=embeds[which], keypoints=points[which], region=[LEFT, RIGHT][which])
            alone = pipe(
                **call_kwargs(prompt=prompts[which], latents=latents[index : index + 1], conditions=[one])
            ).images
            torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)

    def test_a_list_of_pictures(self, pipe):
        images = pipe(**call_kwargs(prompt=["a", "b"], id_image=[PICTURE, OTHER_PICTURE])).images
        same = pipe(**call_kwargs(prompt=["a", "b"], id_image=PICTURE)).images
        torch.testing.assert_close(images[0], same[0], atol=1e-5, rtol=0)
        assert different(images[1], same[1])

    def test_embeddings_of_an_encoder(self, pipe):
        found = pipe.face_encoder.encode(PICTURE)
        images = [pipe(**call_kwargs(**given)).images for given in ({"id_embeds": found}, {"id_image": PICTURE})]
        assert torch.equal(*images)


class TestComposition:
    OTHERS = {
        "entities": lambda pipe: EntityRegions(["a red dog"], [LEFT], on_negative=True),
        "inpaint": lambda pipe: InpaintRegion(OTHER_PICTURE, (16, 0, 48, 16)),
        "controlnet": lambda pipe: ControlNetImage(tiny_controlnet(5), PICTURE, 0.5),
        "xlabs": lambda pipe: ControlNetImage(tiny_controlnet(6, "xlabs"), PICTURE, 0.5),
        "identity": lambda pipe: identity(pipe, 1, region=RIGHT),
        "text": lambda pipe: AddedText(4),
        "reference": lambda pipe: AddedReference(4),
    }

    @pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
    def test_pairs_in_both_orders(self, pipe, other):
        parts = [identity(pipe, 0, region=LEFT, negative="own"), other(pipe)]
        results = [pipe(**call_kwargs(conditions=order, **GUIDED)).images for order in (parts, parts[::-1])]
        torch.testing.assert_close(*results, atol=1e-5, rtol=0)
        for part in parts:
            assert different(results[0], pipe(**call_kwargs(conditions=[part], **GUIDED)).images)

    def test_everything(self, pipe):
        parts = [identity(pipe, 0, region=LEFT), *(other(pipe) for other in self.OTHERS.values())]
        arguments = {"prompt": ["a", "b"], "num_images_per_prompt": 2, **GUIDED}
        results = [pipe(**call_kwargs(conditions=order, **arguments)).images for order in (parts, parts[::-1])]
        torch.testing.assert_close(*results, atol=1e-4, rtol=0)

    CHANGES = {
        "id_embeds": {"id_embeds": face(1)},
        "keypoints": {"keypoints": POINTS + 4},
        "scale": {"scale": [0.5, 0.2, 0.1]},
        "start": {"start": 0.3},
        "end": {"end": 0.7},
        "guidance_scale": {"guidance_scale": 3.0},
        "region": {"region": RIGHT},
        "negative": {"negative": "shared"},
    }

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    @pytest.mark.parametrize("other", [*OTHERS.values(), None], ids=[*OTHERS, "alone"])
    def test_every_input_counts(self, pipe, change, other):
        others = [] if other is None else [other(pipe)]
        base = {"region": LEFT, "keypoints": POINTS}
        images = [
            pipe(**call_kwargs(conditions=[identity(pipe, **{**base, **given}), *others], **GUIDED)).images
            for given in ({}, change)
        ]
        assert (images[0] - images[1]).abs().max() > 1e-6

    def test_bfloat16_is_finite(self):
        pipe = tiny_pipeline(FluxInfiniteYouPipeline, **tiny_identity_modules()).to(torch.bfloat16)
        images = pipe(**call_kwargs(id_embeds=face(), **GUIDED)).images
        assert torch.isfinite(images.float()).all()


class TestOffload:
    def test_the_loop_keeps_what_it_runs_only(self, monkeypatch):
        pipe = tiny_pipeline(FluxInfiniteYouPipeline, **tiny_identity_modules(), image_encoder=tiny_siglip())
        entities = EntityRegions(["a red dog"], [LEFT])
        pictures = IPAdapterImages(tiny_ip_adapter(1), picture())
        arguments = {"id_embeds": face(), "conditions": [pictures, entities]}
        expected = pipe(**call_kwargs(**arguments)).images
        calls = watch_card(monkeypatch, pipe)
        assert torch.equal(pipe(**call_kwargs(**arguments)).images, expected)
        assert [card for name, card in calls if name == "transformer"] == [{"transformer", "controlnet"}] * 3

    def test_without_hooks_nothing_moves(self, pipe):
        offload_all_but(pipe, ("transformer",))
        assert not hasattr(pipe, "_all_hooks")


class TestFiles:
    def test_saved_and_reloaded(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        expected = pipe(**call_kwargs(id_embeds=face())).images
        for loader in (FluxInfiniteYouPipeline, DiffusionPipeline):
            loaded = quiet(loader.from_pretrained(tmp_path))
            assert type(loaded) is FluxInfiniteYouPipeline
            for name in ("controlnet", "image_projector"):
                weights = getattr(pipe, name).state_dict()
                assert all(
                    torch.equal(weight, weights[key]) for key, weight in getattr(loaded, name).state_dict().items()
                )
            # Weights in a mapped file are aligned differently, which changes the rounding of a product with one row.
            torch.testing.assert_close(loaded(**call_kwargs(id_embeds=face())).images, expected, atol=1e-5, rtol=0)
        encoder = ColorFaceEncoder()
        loaded = quiet(FluxInfiniteYouPipeline.from_pretrained(tmp_path, face_encoder=encoder))
        assert loaded.face_encoder is encoder

    def test_on_a_plain_repository(self, pipe, tmp_path):
        tiny_pipeline(FluxPipeline).save_pretrained(tmp_path)
        modules = tiny_identity_modules()
        for arguments in (
            {"custom_pipeline": diffusers_flux_ext.custom_pipeline("infinite_you"), "trust_remote_code": True},
            {},
        ):
            loader = DiffusionPipeline if arguments else FluxInfiniteYouPipeline
            loaded = quiet(loader.from_pretrained(tmp_path, **modules, **arguments))
            assert type(loaded) is FluxInfiniteYouPipeline
            loaded(**call_kwargs(id_embeds=face()))

    def test_from_pipe_both_ways(self, pipe):
        modules = tiny_identity_modules()
        stock = tiny_pipeline(FluxPipeline).to(torch.bfloat16)
        ours = FluxInfiniteYouPipeline.from_pipe(stock, **modules, face_encoder=ColorFaceEncoder())
        assert ours.transformer is stock.transformer
        assert ours.transformer.dtype == torch.bfloat16
        again = FluxInfiniteYouPipeline.from_pipe(ours)
        assert (again.controlnet, again.face_encoder) == (ours.controlnet, ours.face_encoder)
        assert pipe.to_pipeline(FluxPipeline).transformer is pipe.transformer
        assert pipe.to_pipeline(FluxInfiniteYouPipeline).face_encoder is pipe.face_encoder

    def test_without_its_modules(self):
        bare = tiny_pipeline(FluxInfiniteYouPipeline)
        bare(**call_kwargs())
        with pytest.raises(ValueError, match=r"has no \['controlnet', 'image_projector'\]"):
            bare(**call_kwargs(id_embeds=face()))


BAD = {
    "nothing": ({"id_embeds": None}, ValueError, "needs `id_image`"),
    "both identities": ({"id_image": PICTURE, "id_embeds": face()}, ValueError, "both `id_image` and `id_embeds`"),
    "both poses": (
        {"control_image": PICTURE, "keypoints": POINTS},
        ValueError,
        "both `control_image` and `keypoints`",
    ),
    "no encoder": ({"id_image": PICTURE, "id_embeds": None}, ValueError, r"face_encoder.*\[infinite-you\]"),
    "a wide embedding": ({"id_embeds": torch.zeros(512)}, ValueError, r"shape \(512,\); expected \(16,\)"),
    "four points": ({"keypoints": POINTS[:4]}, ValueError, r"shape \(4, 2\); expected \(5, 2\)"),
    "a window turned round": ({"start": 0.5, "end": 0.5}, ValueError, "start < end"),
    "a wrong branch": ({"negative": "zeros"}, ValueError, "'zeros' came"),
    "a face without a picture": ({"face_index": 0}, ValueError, "`face_index` of InfiniteYouIdentity"),
    "a scale that is no number": ({"scale": float("nan")}, ValueError, "has to be finite"),
    "no projector": ({"image_projector": torch.nn.Linear(2, 2)}, TypeError, "`image_projector`.*Linear"),
    "no face encoder": ({"face_encoder": "arcface"}, TypeError, "is a str; expected a"),
    "a union": ({"controlnet": tiny_controlnet(0, "union")}, ValueError, "a union of several modes"),
    "inpainting": ({"controlnet": tiny_controlnet(0, "inpaint")}, ValueError, "made for inpainting"),
    "XLabs": ({"controlnet": tiny_controlnet(0, "xlabs")}, ValueError, "one of XLabs'"),
    "no controlnet": ({"controlnet": torch.nn.Linear(2, 2)}, TypeError, "Linear, which has no"),
    "too many embeddings": ({"id_embeds": torch.zeros(3, 16)}, ValueError, "3 samples, but there are 1 prompts"),
    "a path": (
        {"id_image": "her.png", "id_embeds": None, "face_encoder": ColorFaceEncoder()},
        TypeError,
        "one of type str",
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
    with pytest.raises(ValueError, match="`control_image` came without an identity"):
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
    with pytest.raises(ValueError, match=f"`{name}` came without an identity"):
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


class TestProjectorFile:
    def test_the_published_layout(self, tmp_path):
        projector = tiny_projector(3)
        torch.save({"image_proj": projector.state_dict()}, tmp_path / "image_proj_model.bin")
        loaded = InfiniteYouImageProjector.from_single_file(tmp_path / "image_proj_model.bin", dim_head=8)
        assert dict(loaded.config) == dict(projector.config)
        assert torch.equal(loaded(face()[None, None]), projector(face()[None, None]))
        loaded.save_pretrained(tmp_path / "folder")
        again = InfiniteYouImageProjector.from_pretrained(tmp_path / "folder")
        assert all(torch.equal(weight, again.state_dict()[key]) for key, weight in projector.state_dict().items())

    def test_the_released_sizes(self):
        with torch.device("meta"):
            released = InfiniteYouImageProjector()
        assert released.latents.shape == (1, 8, 1280)
        assert released.layers[3][0].to_kv.weight.shape == (2560, 1280)

    def test_code_in_a_pickle_is_not_run(self, tmp_path):
        torch.save({"image_proj": ColorFaceEncoder()}, tmp_path / "bad.bin")
        with pytest.raises(ValueError, match="no pickle of plain tensors"):
            InfiniteYouImageProjector.from_single_file(tmp_path / "bad.bin")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda weights: {"a": torch.zeros(1)}, "no image projector of InfiniteYou"),
            (lambda weights: {**weights, "b": torch.zeros(1)}, "surplus or of a wrong shape .*: `b`"),
            (
                lambda weights: {key: value for key, value in weights.items() if key != "norm_out.bias"},
                "norm_out.bias",
            ),
        ],
    )
    def test_other_files(self, change, message):
        with pytest.raises(ValueError, match=message):
            InfiniteYouImageProjector.from_single_file(change(tiny_projector().state_dict()), dim_head=8)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            InfiniteYouImageProjector.from_single_file(tmp_path / "absent.bin")
