"""LoRA-Encoder: laws, formats, partial LoRAs, batches, inputs, files, saving and sharing."""

import logging

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from safetensors.torch import save_file

import diffusers_flux_ext
from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from benchmarks.support.tiny.lora_encoder import SIZES, tiny_lora, tiny_lora_encoder
from conversion_scripts import convert_lora_encoder as script
from diffusers_flux_ext import (
    AttributeValues,
    EntityRegions,
    FluxConditionedPipeline,
    FluxLoRAEncoder,
    FluxLoRAEncoderPipeline,
    LoRAEmbedding,
    convert_lora,
)
from diffusers_flux_ext.methods.lora_encoder.inputs import read_lora_layers
from diffusers_flux_ext.testing import call_kwargs, different, quiet, seeded, tiny_pipeline


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxLoRAEncoderPipeline, lora_encoder=tiny_lora_encoder())


def draw(pipe, **arguments):
    return pipe(**call_kwargs(**{"num_inference_steps": 2, **arguments})).images


def pairs(weights):
    names = [key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight")]
    return {name: (weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]) for name in names}


def tokens_of(lora, strict=True):
    encoder = tiny_lora_encoder()
    return encoder(pairs(read_lora_layers(encoder, lora, strict)))


class TestLaws:
    @pytest.mark.parametrize("scale", [0.0, [0.0, 0.0]])
    def test_scale_zero_is_no_lora(self, pipe, scale):
        plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
        images = draw(pipe, lora_inputs=[tiny_lora(), tiny_lora(1)], lora_embedding_scale=scale, **GUIDED)
        assert torch.equal(images, draw(plain, **GUIDED))
        assert torch.equal(draw(pipe, **GUIDED), draw(plain, **GUIDED))

    def test_the_named_pipeline_is_the_condition(self, pipe):
        condition = LoRAEmbedding(pipe.lora_encoder, [tiny_lora()], 0.7)
        named = draw(pipe, lora_inputs=tiny_lora(), lora_embedding_scale=0.7, **GUIDED)
        assert torch.equal(named, draw(pipe, conditions=[condition], **GUIDED))
        assert different(named, draw(pipe, lora_inputs=tiny_lora(), **GUIDED))

    def test_a_scale_of_zero_leaves_one_of_two_out(self, pipe):
        two = draw(pipe, lora_inputs=[tiny_lora(1), tiny_lora()], lora_embedding_scale=[0.0, 0.7])
        torch.testing.assert_close(
            two, draw(pipe, lora_inputs=tiny_lora(), lora_embedding_scale=0.7), atol=1e-5, rtol=0
        )

    def test_the_transformer_and_the_lora_stay_as_they_are(self, pipe):
        lora = tiny_lora()
        given = {key: (weight, weight.clone()) for key, weight in lora.items()}
        before = {key: weight.clone() for key, weight in pipe.transformer.state_dict().items()}
        draw(pipe, lora_inputs=lora)
        assert all(torch.equal(weight, before[key]) for key, weight in pipe.transformer.state_dict().items())
        assert lora.keys() == given.keys()
        assert all(lora[key] is same and torch.equal(same, copy) for key, (same, copy) in given.items())


class TestFormats:
    @pytest.mark.parametrize("to", ["diffusers", "kohya", "bfl", "onetrainer"])
    def test_every_format_gives_the_same_tokens(self, to):
        converted, metadata = convert_lora(tiny_lora(), to=to)
        torch.testing.assert_close(tokens_of(converted), tokens_of(tiny_lora()), atol=1e-5, rtol=0)

    def test_alpha_is_a_scale(self):
        scaled = {key: weight * (0.01 if "lora_B" in key else 1) for key, weight in tiny_lora().items()}
        alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(0.02) for key in tiny_lora() if "lora_A" in key}
        torch.testing.assert_close(tokens_of({**tiny_lora(), **alphas}), tokens_of(scaled), atol=1e-5, rtol=0)
        assert different(tokens_of({**tiny_lora(), **alphas}), tokens_of(tiny_lora()))

    def test_a_missing_layer_is_an_update_of_zero(self):
        partial = {key: weight for key, weight in tiny_lora().items() if key.startswith("single_blocks.1.")}
        zero = {key: weight if key in partial else torch.zeros_like(weight) for key, weight in tiny_lora().items()}
        assert torch.equal(tokens_of(partial), tokens_of(zero))
        assert different(tokens_of(partial), tokens_of(tiny_lora()))

    def test_a_part_of_a_fused_layer_is_enough(self):
        name = "transformer.transformer_blocks.0.attn.to_k"
        lora = {f"{name}.lora_A.weight": torch.randn(2, 32, generator=seeded(0)),
                f"{name}.lora_B.weight": torch.randn(32, 2, generator=seeded(1))}  # fmt: skip
        wide = torch.cat([torch.zeros(32, 2), lora[f"{name}.lora_B.weight"], torch.zeros(32, 2)])
        fused = {"blocks.0.attn.a_to_qkv.lora_A.weight": lora[f"{name}.lora_A.weight"],
                 "blocks.0.attn.a_to_qkv.lora_B.weight": wide}  # fmt: skip
        torch.testing.assert_close(tokens_of(lora), tokens_of(fused), atol=1e-6, rtol=0)

    def test_other_layers_are_errors_or_left_out(self, caplog):
        more = {"x_embedder.lora_A.weight": torch.ones(1, 64), "x_embedder.lora_B.weight": torch.ones(32, 1)}
        with pytest.raises(ValueError, match="not trained to read.*x_embedder"):
            tokens_of({**tiny_lora(), **more})
        logger = logging.getLogger("diffusers_flux_ext.methods.lora_encoder.inputs")
        logger.addHandler(caplog.handler)
        try:
            assert torch.equal(tokens_of({**tiny_lora(), **more}, strict=False), tokens_of(tiny_lora()))
        finally:
            logger.removeHandler(caplog.handler)
        assert "2 parts of a LoRA are left out" in caplog.text
        with pytest.raises(ValueError, match="has none of them"):
            tokens_of(more, strict=False)


def test_loras_per_prompt_are_their_samples(pipe):
    latents = torch.randn(4, 6, 64, generator=seeded(5))
    prompts, loras = ["a cat", "a tree"], [[tiny_lora(0), tiny_lora(1, 3)], [tiny_lora(2, 1), tiny_lora(3)]]
    given = {"lora_embedding_scale": [1.0, 0.5], **GUIDED}
    together = draw(pipe, prompt=prompts, num_images_per_prompt=2, latents=latents, lora_inputs=loras, **given)
    for index in range(4):
        one = {"prompt": prompts[index // 2], "latents": latents[index : index + 1], "lora_inputs": loras[index // 2]}
        torch.testing.assert_close(together[index : index + 1], draw(pipe, **one, **given), atol=1e-4, rtol=0)


def test_with_entities_and_attributes_in_any_order(pipe):
    others = [
        EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)], negative="own"),
        AttributeValues(tiny_value_encoder(), {"brightness": 0.7}),
        LoRAEmbedding(pipe.lora_encoder, tiny_lora()),
    ]
    pictures = [draw(pipe, conditions=order, **GUIDED) for order in (others, others[::-1])]
    torch.testing.assert_close(*pictures, atol=1e-5, rtol=0)
    assert different(pictures[0], draw(pipe, conditions=others[:2], **GUIDED))


def test_beside_the_loaded_lora(pipe):
    pipe.load_lora_weights(tiny_lora())
    try:
        loaded = draw(pipe)
        assert different(draw(pipe, lora_inputs=tiny_lora()), loaded)
    finally:
        pipe.unload_lora_weights()


def test_training_reaches_the_encoder():
    encoder = tiny_lora_encoder().requires_grad_(True)
    tokens = encoder(pairs(tiny_lora()))
    tokens.square().sum().backward()
    assert tokens.shape == (1, 2, 40)
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_bfloat16_is_finite():
    pipe = tiny_pipeline(FluxLoRAEncoderPipeline, lora_encoder=tiny_lora_encoder()).to(torch.bfloat16)
    assert torch.isfinite(draw(pipe, lora_inputs=tiny_lora(), **GUIDED).float()).all()


class TestFiles:
    def test_the_published_layout(self, tmp_path):
        encoder = tiny_lora_encoder(num_encoder_layers=2)
        save_file(encoder.state_dict(), tmp_path / "model.safetensors")
        loaded = FluxLoRAEncoder.from_single_file(tmp_path / "model.safetensors", num_attention_heads=4)
        assert {name: loaded.config[name] for name in SIZES} == {**SIZES, "num_encoder_layers": 2}
        torch.testing.assert_close(loaded(pairs(tiny_lora())), encoder(pairs(tiny_lora())), atol=1e-5, rtol=0)

    def test_the_released_sizes(self):
        with torch.device("meta"):
            released = FluxLoRAEncoder()
        shapes = {key: tuple(weight.shape) for key, weight in released.state_dict().items()}
        assert len(released.layer_shapes) == 19 * 10 + 38 * 3
        assert shapes["embedder.model_dict.blocks___18___norm1_b___linear.layer_norm.weight"] == (18432,)
        assert shapes["embedder.model_dict.single_blocks___37___proj_out.x"] == (1, 16, 15360)
        assert shapes["embedder.proj_dict.to_qkv_mlp.weight"] == (4096, 21504)
        assert shapes["embedder.proj_dict.attn___a_to_qkv.weight"] == (4096, 9216)
        assert shapes["encoders.0.fc1.weight"] == (8192, 4096)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda weights: {"a": torch.zeros(1)}, "not a LoRA-Encoder for FLUX.1"),
            (lambda weights: {**weights, "b": torch.zeros(1)}, "wrong shape for FluxLoRAEncoder: `b`"),
            (lambda weights: {k: v for k, v in weights.items() if k != "final_linear.bias"}, "final_linear.bias"),
        ],
    )
    def test_other_files(self, change, message):
        with pytest.raises(ValueError, match=message):
            FluxLoRAEncoder.from_single_file(change(tiny_lora_encoder().state_dict()), num_attention_heads=4)

    def test_the_script(self, tmp_path, capsys):
        save_file(tiny_lora_encoder().state_dict(), tmp_path / "model.safetensors")
        arguments = [str(tmp_path / "model.safetensors"), str(tmp_path / "out"), "--num-attention-heads", "4"]
        assert script.main(arguments) == 0
        loaded, expected = FluxLoRAEncoder.from_pretrained(tmp_path / "out"), tiny_lora_encoder().state_dict()
        assert loaded.config.num_attention_heads == 4
        assert all(torch.equal(weight, expected[key]) for key, weight in loaded.state_dict().items())
        assert script.main(arguments) == 1
        assert "exists already" in capsys.readouterr().err
        assert script.main([str(tmp_path / "absent"), str(tmp_path / "new")]) == 1
        assert not (tmp_path / "new").exists()

    def test_saved_and_reloaded(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        expected = draw(pipe, lora_inputs=tiny_lora())
        for loader in (FluxLoRAEncoderPipeline, DiffusionPipeline):
            loaded = quiet(loader.from_pretrained(tmp_path))
            assert type(loaded) is FluxLoRAEncoderPipeline
            torch.testing.assert_close(draw(loaded, lora_inputs=tiny_lora()), expected, atol=1e-5, rtol=0)

    def test_on_a_plain_repository(self, tmp_path):
        tiny_pipeline(FluxPipeline).save_pretrained(tmp_path)
        shim = diffusers_flux_ext.custom_pipeline("lora_encoder")
        loaded = DiffusionPipeline.from_pretrained(
            tmp_path, lora_encoder=tiny_lora_encoder(), custom_pipeline=shim, trust_remote_code=True
        )
        assert type(loaded) is FluxLoRAEncoderPipeline
        draw(quiet(loaded), lora_inputs=tiny_lora())

    def test_from_pipe_both_ways(self, pipe):
        stock = tiny_pipeline(FluxPipeline).to(torch.bfloat16)
        ours = FluxLoRAEncoderPipeline.from_pipe(stock, lora_encoder=pipe.lora_encoder)
        assert ours.transformer is stock.transformer
        assert ours.transformer.dtype == torch.bfloat16
        assert FluxLoRAEncoderPipeline.from_pipe(ours).lora_encoder is pipe.lora_encoder
        assert pipe.to_pipeline(FluxPipeline).transformer is pipe.transformer


BAD = {
    "no lora": ({"loras": []}, ValueError, r"lists of the lengths \[0\]"),
    "lists of two lengths": ({"loras": [[tiny_lora()], [tiny_lora()] * 2]}, ValueError, r"lengths \[1, 2\]"),
    "a number": ({"loras": 3}, TypeError, "`loras` of LoRAEmbedding holds 3; expected paths"),
    "two scales": ({"scale": [1.0, 2.0]}, ValueError, "`scale` .*2 numbers, but 1 are needed"),
    "no number": ({"scale": "strong"}, TypeError, "`scale` of LoRAEmbedding must be a number .*'strong'"),
    "an endless scale": ({"scale": float("nan")}, ValueError, "must be a finite number .*got nan"),
    "too many prompts": ({"loras": [[tiny_lora()]] * 3}, ValueError, "3 samples, but there are 1 prompts"),
    "no file": ({"loras": "absent.safetensors"}, Exception, "absent.safetensors"),
    "a wider LoRA": ({"loras": tiny_lora(inner_dim=48)}, ValueError, "Is the LoRA for another model"),
    "a deeper LoRA": ({"loras": tiny_lora(num_single_layers=4)}, ValueError, "not trained to read.*single_blocks.3"),
    "unknown keys": ({"loras": {**tiny_lora(), "a.b": torch.zeros(1)}}, ValueError, "a.b"),
    "nan": ({"loras": {key: weight * torch.nan for key, weight in tiny_lora().items()}}, ValueError, "NaN"),
    "another encoder": ({"encoder": torch.nn.Linear(2, 2)}, TypeError, "Linear; expected a `FluxLoRAEncoder`"),
    "another width": ({"encoder": tiny_lora_encoder(embed_dim=48)}, ValueError, "width 48, but the transformer's"),
    "another dtype": ({"encoder": tiny_lora_encoder().to(torch.bfloat16)}, ValueError, "LoRAEmbedding is torch.bf"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(pipe, arguments, error, message):
    with pytest.raises(error, match=message):
        draw(pipe, conditions=[LoRAEmbedding(**{"encoder": pipe.lora_encoder, "loras": tiny_lora(), **arguments})])


def test_a_call_without_an_encoder():
    with pytest.raises(ValueError, match="has no `lora_encoder`"):
        draw(tiny_pipeline(FluxLoRAEncoderPipeline), lora_inputs=tiny_lora())
