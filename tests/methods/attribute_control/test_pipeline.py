"""AttriCtrl: laws, the negative branch, batches, inputs, files, saving and sharing."""

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from safetensors.torch import save_file

import diffusers_flux_ext
from benchmarks.support.tiny.attribute_values import SIZES, published_state_dict, tiny_value_encoder
from benchmarks.support.tiny.controlnet import PICTURE
from conversion_scripts import convert_attribute_values as script
from diffusers_flux_ext import (
    AttributeValueEncoder,
    AttributeValues,
    EntityRegions,
    FluxAttributeControlPipeline,
    FluxConditionedPipeline,
    InpaintRegion,
)
from diffusers_flux_ext.testing import call_kwargs, different, quiet, seeded, tiny_pipeline


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
BRIGHT = {"attribute_values": {"brightness": 0.7}}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxAttributeControlPipeline, value_encoder=tiny_value_encoder())


def draw(pipe, **arguments):
    return pipe(**call_kwargs(**{"num_inference_steps": 2, **arguments})).images


class TestLaws:
    @pytest.mark.parametrize("values", [None, {}, {"brightness": None}, {"brightness": None, "detail": None}])
    def test_no_value_is_the_plain_pipeline(self, pipe, values):
        plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
        assert torch.equal(draw(pipe, attribute_values=values, **GUIDED), draw(plain, **GUIDED))

    def test_the_named_pipeline_is_the_condition(self, pipe):
        condition = AttributeValues(pipe.value_encoder, {"brightness": 0.7}, {"detail": 0.1})
        named = draw(pipe, **BRIGHT, negative_attribute_values={"detail": 0.1}, **GUIDED)
        assert torch.equal(named, draw(pipe, conditions=[condition], **GUIDED))

    def test_every_value_and_every_attribute_counts(self, pipe):
        pictures = [
            draw(pipe, attribute_values=values)
            for values in (
                {"brightness": 0.7},
                {"brightness": 0.71},
                {"detail": 0.7},
                {"brightness": 0.7, "detail": 0.0},
                {"brightness": 0.7, "detail": 1.0},
            )
        ]
        for index, picture in enumerate(pictures):
            assert all((picture - other).abs().max() > 1e-6 for other in pictures[:index])

    def test_none_skips_one_and_the_order_of_names_does_not_matter(self, pipe):
        assert torch.equal(draw(pipe, **BRIGHT), draw(pipe, attribute_values={"detail": None, "brightness": 0.7}))
        both = [{"brightness": 0.7, "detail": 0.2}, {"detail": 0.2, "brightness": 0.7}]
        assert torch.equal(*(draw(pipe, attribute_values=values) for values in both))

    def test_encoders_of_two_conditions_add_up(self, pipe):
        one, two = tiny_value_encoder(1, attributes=["mood"]), {"brightness": 0.7}
        conditions = [AttributeValues(one, {"mood": 0.4}), AttributeValues(pipe.value_encoder, two)]
        pictures = [draw(pipe, conditions=order) for order in (conditions, conditions[::-1])]
        torch.testing.assert_close(*pictures, atol=1e-5, rtol=0)
        assert different(pictures[0], draw(pipe, **BRIGHT))


class TestNegativeBranch:
    LENGTHS = {"same": (19, 19), None: (19, 16), "own": (19, 22)}

    @pytest.mark.parametrize("negative", LENGTHS)
    def test_text_lengths_of_both_branches(self, pipe, negative):
        own = {"brightness": 0.1, "detail": 0.5}
        lengths = []
        handle = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: lengths.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
        )
        given = own if negative == "own" else negative
        draw(pipe, **BRIGHT, negative_attribute_values=given, num_inference_steps=1, **GUIDED)
        handle.remove()
        assert tuple(lengths) == self.LENGTHS[negative]

    def test_it_counts(self, pipe):
        pictures = [
            draw(pipe, **BRIGHT, negative_attribute_values=negative, **GUIDED)
            for negative in ("same", None, {"brightness": 0.1})
        ]
        assert different(pictures[0], pictures[1])
        assert different(pictures[0], pictures[2])
        assert different(pictures[1], pictures[2])


def test_batches_are_their_samples(pipe):
    latents = torch.randn(4, 6, 64, generator=seeded(5))
    prompts, bright = ["a cat", "a tree"], [0.1, 0.9]
    values = {"brightness": bright, "detail": 0.3}
    together = draw(pipe, prompt=prompts, num_images_per_prompt=2, latents=latents, attribute_values=values, **GUIDED)
    for index in range(4):
        one = {"brightness": bright[index // 2], "detail": 0.3}
        given = {"prompt": prompts[index // 2], "latents": latents[index : index + 1], "attribute_values": one}
        torch.testing.assert_close(together[index : index + 1], draw(pipe, **given, **GUIDED), atol=1e-4, rtol=0)


def test_with_entities_and_inpainting_in_any_order(pipe):
    others = [
        EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)], negative="own"),
        InpaintRegion(PICTURE, (0.0, 0.0, 0.67, 1.0)),
        AttributeValues(pipe.value_encoder, {"brightness": 0.7}),
    ]
    pictures = [draw(pipe, conditions=order, **GUIDED) for order in (others, others[::-1])]
    torch.testing.assert_close(*pictures, atol=1e-5, rtol=0)
    assert different(pictures[0], draw(pipe, conditions=others[:2], **GUIDED))


def test_training_reaches_the_encoder(pipe):
    encoder = tiny_value_encoder().requires_grad_(True)
    tokens = encoder(torch.tensor([0.2, 0.4]), "detail")
    tokens.square().sum().backward()
    assert tokens.shape == (2, 3, 40)
    assert all(weight.grad is not None for weight in encoder.encoders[1].parameters())


def test_bfloat16_is_finite_and_values_are_not_rounded():
    encoder = tiny_value_encoder().to(torch.bfloat16)
    pipe = tiny_pipeline(FluxAttributeControlPipeline, value_encoder=encoder).to(torch.bfloat16)
    assert torch.isfinite(draw(pipe, **BRIGHT, **GUIDED).float()).all()
    near = [encoder(torch.tensor([value]), "brightness") for value in (0.7, 0.701)]
    assert torch.tensor(0.7).bfloat16() == torch.tensor(0.701).bfloat16()
    assert different(*near)


class TestFiles:
    @pytest.fixture
    def files(self, tmp_path):
        encoder = tiny_value_encoder()
        for index, name in enumerate(encoder.config.attributes):
            save_file(published_state_dict(encoder, index), tmp_path / f"{name}.safetensors")
        return tmp_path

    def test_published_files_are_joined(self, files):
        encoder = tiny_value_encoder()
        loaded = AttributeValueEncoder.from_single_file(
            {"brightness": files / "brightness.safetensors", "detail": published_state_dict(encoder, 1)}
        )
        assert {name: loaded.config[name] for name in SIZES} == SIZES
        assert all(torch.equal(weight, encoder.state_dict()[key]) for key, weight in loaded.state_dict().items())
        values = torch.tensor([0.3])
        torch.testing.assert_close(loaded(values, "detail"), encoder(values, "detail"), atol=1e-6, rtol=0)

    def test_a_file_names_its_attribute(self, files):
        loaded = AttributeValueEncoder.from_single_file(files / "detail.safetensors", torch_dtype=torch.bfloat16)
        assert loaded.config.attributes == ["detail"]
        assert loaded.dtype == torch.bfloat16
        named = AttributeValueEncoder.from_single_file(files / "detail.safetensors", "sharpness")
        assert named.config.attributes == ["sharpness"]

    def test_the_released_sizes(self):
        with torch.device("meta"):
            released = AttributeValueEncoder()
        shapes = {key: tuple(weight.shape) for key, weight in published_state_dict(released, 0).items()}
        assert shapes == {
            "prefer_value_embedder.0.weight": (4096, 256),
            "prefer_value_embedder.0.bias": (4096,),
            "prefer_value_embedder.2.weight": (4096, 4096),
            "prefer_value_embedder.2.bias": (4096,),
            "positional_embedding": (32, 4096),
        }

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({"brightness": {"a": torch.zeros(1)}}, "not a value encoder of AttriCtrl for 'brightness'"),
            ({"a": torch.zeros(1)}, "does not say which attribute"),
            ({}, "A mapping of files names its attributes itself"),
            (
                {"one": published_state_dict(tiny_value_encoder(num_tokens=2), 0),
                 "two": published_state_dict(tiny_value_encoder(), 0)},
                "differ in size",
            ),
            ({"one": {**published_state_dict(tiny_value_encoder(), 0), "more": torch.zeros(1)}}, "encoders.0.more"),
        ],
    )  # fmt: skip
    def test_other_files(self, source, message):
        with pytest.raises(ValueError, match=message):
            AttributeValueEncoder.from_single_file(source)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            AttributeValueEncoder.from_single_file(tmp_path / "absent.safetensors")

    def test_the_script(self, files, capsys):
        sources = [str(files / f"{name}.safetensors") for name in ("brightness", "detail")]
        assert script.main([*sources, str(files / "out")]) == 0
        loaded = AttributeValueEncoder.from_pretrained(files / "out")
        expected = tiny_value_encoder().state_dict()
        assert all(torch.equal(weight, expected[key]) for key, weight in loaded.state_dict().items())
        assert script.main([*sources, str(files / "out")]) == 1
        assert "exists already" in capsys.readouterr().err
        assert script.main([str(files / "absent.safetensors"), str(files / "new")]) == 1
        assert not (files / "new").exists()

    def test_saved_and_reloaded(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        for loader in (FluxAttributeControlPipeline, DiffusionPipeline):
            loaded = quiet(loader.from_pretrained(tmp_path))
            assert type(loaded) is FluxAttributeControlPipeline
            assert loaded.value_encoder.config.attributes == ["brightness", "detail"]
            torch.testing.assert_close(draw(loaded, **BRIGHT), draw(pipe, **BRIGHT), atol=1e-5, rtol=0)

    def test_on_a_plain_repository(self, tmp_path):
        tiny_pipeline(FluxPipeline).save_pretrained(tmp_path)
        shim = diffusers_flux_ext.custom_pipeline("attribute_control")
        loaded = DiffusionPipeline.from_pretrained(
            tmp_path, value_encoder=tiny_value_encoder(), custom_pipeline=shim, trust_remote_code=True
        )
        assert type(loaded) is FluxAttributeControlPipeline
        draw(quiet(loaded), **BRIGHT)

    def test_from_pipe_both_ways(self, pipe):
        stock = tiny_pipeline(FluxPipeline).to(torch.bfloat16)
        ours = FluxAttributeControlPipeline.from_pipe(stock, value_encoder=pipe.value_encoder)
        assert ours.transformer is stock.transformer
        assert ours.transformer.dtype == torch.bfloat16
        assert FluxAttributeControlPipeline.from_pipe(ours).value_encoder is pipe.value_encoder
        assert pipe.to_pipeline(FluxPipeline).transformer is pipe.transformer


BAD = {
    "an unknown attribute": ({"values": {"mood": 0.5}}, ValueError, r"attributes \['mood'\], but the encoder knows"),
    "above one": ({"values": {"brightness": 1.1}}, ValueError, "values\\['brightness'\\]`.*from 0 to 1, got 1.1"),
    "below zero": ({"values": {"brightness": [0.1, -1]}}, ValueError, "from 0 to 1, got -1"),
    "not a number": ({"values": {"brightness": float("nan")}}, ValueError, "from 0 to 1, got nan"),
    "a list": ({"values": [0.5]}, TypeError, "expected values by attribute"),
    "a text": ({"values": {"brightness": "high"}}, TypeError, "a number from 0 to 1, got 'high'"),
    "a tensor": ({"values": {"brightness": torch.zeros(2, 2)}}, TypeError, r"a number.*tensor of shape \(2, 2\)"),
    "a truth": ({"values": {"brightness": [True]}}, TypeError, "a number from 0 to 1, got True"),
    "a none inside": ({"values": {"brightness": [0.1, None]}}, TypeError, "a number from 0 to 1, got None"),
    "surplus values": ({"values": {"brightness": [0.1, 0.2, 0.3]}}, ValueError, "3 samples, but there are 1 prompts"),
    "an unknown branch": ({"negative": "own"}, ValueError, "`negative` of AttributeValues is 'own'"),
    "unknown on the negative side": (
        {"negative": {"mood": 0.5}},
        ValueError,
        r"`negative` of AttributeValues has the attributes",
    ),
    "another encoder": ({"encoder": torch.nn.Linear(2, 2)}, TypeError, "Linear; expected an `AttributeValueEncoder`"),
    "another width": (
        {"encoder": tiny_value_encoder(output_dim=48)},
        ValueError,
        "width 48, but the transformer's text is 40 wide",
    ),
    "another dtype": (
        {"encoder": tiny_value_encoder().to(torch.bfloat16)},
        ValueError,
        "`encoder` of AttributeValues is torch.bfloat16",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(pipe, arguments, error, message):
    base = {"encoder": pipe.value_encoder, "values": {"brightness": 0.5}}
    with pytest.raises(error, match=message):
        draw(pipe, conditions=[AttributeValues(**{**base, **arguments})])


def test_bad_calls(pipe):
    with pytest.raises(ValueError, match="has no `value_encoder`"):
        draw(tiny_pipeline(FluxAttributeControlPipeline), **BRIGHT)
    with pytest.raises(ValueError, match="was given without `attribute_values`"):
        draw(pipe, negative_attribute_values={"brightness": 0.1})
    with pytest.raises(ValueError, match="no attribute 'mood'"):
        pipe.value_encoder(torch.tensor([0.5]), "mood")
    for attributes in ([], ["a", "a"], "a"):
        with pytest.raises(ValueError, match="expected a list of different names"):
            AttributeValueEncoder(attributes)
