"""Step1X-Edit: files, saved pipelines and inputs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from safetensors.torch import save_file

import diffusers_flux_ext
from benchmarks.support.tiny.step1x import SIZES, edited, instruction_embeds, tiny_connector
from conversion_scripts.convert_step1x_edit import main as convert
from diffusers_flux_ext import (
    FluxExtTransformer2DModel,
    FluxStep1XEditPipeline,
    QwenVLProcessor,
    Step1XConnector,
    Step1XInstruction,
)
from diffusers_flux_ext.methods.step1x_edit.instructions import cut_quotes
from diffusers_flux_ext.testing import quiet, tiny_components
from tests.fixtures.step1x_pipelines import EMBEDS, TEXT_PARTS, draw, make, make_whole, published, tiny_question


pytestmark = pytest.mark.versions


@pytest.fixture(scope="module")
def pipe() -> Any:
    """Without a language model."""
    return make()


@pytest.fixture(scope="module")
def whole() -> Iterator[Any]:
    """With the language model and without text encoders."""
    with tiny_question():
        yield make_whole()


class TestFiles:
    AXES = {"axes_dims_rope": (4, 6, 6)}

    def test_the_published_file(self, pipe, tmp_path):
        path = tmp_path / "step1x-edit-i1258.safetensors"
        save_file(published(pipe), path)
        transformer = FluxExtTransformer2DModel.from_single_file(path, **self.AXES)
        connector = Step1XConnector.from_single_file(path, num_attention_heads=2)
        assert not transformer.config.guidance_embeds
        assert dict(connector.config) | SIZES == dict(connector.config)
        loaded = quiet(
            FluxStep1XEditPipeline(**{**pipe.components, "transformer": transformer, "connector": connector})
        )
        assert torch.equal(draw(loaded, **EMBEDS), draw(pipe, **EMBEDS))

    def test_version_one_point_one_is_told_by_its_tensors(self, pipe):
        config = Step1XConnector.from_single_file(published(pipe, "1.1"), num_attention_heads=2).config
        assert (config.scale_pooled, config.timestep_scale, config.reference_offset) == (False, 1000.0, 1)
        config = Step1XConnector.from_single_file(published(pipe), num_attention_heads=2).config
        assert (config.scale_pooled, config.timestep_scale, config.reference_offset) == (True, 1.0, 0)

    def test_the_conversion_script(self, pipe, tmp_path):
        source, target = tmp_path / "step1x.safetensors", tmp_path / "step1x"
        save_file(published(pipe), source)
        sizes = ["--axes-dims-rope", "4", "6", "6", "--num-attention-heads", "2"]
        assert convert([str(source), str(target), *sizes]) == 0
        parts = {
            "transformer": FluxExtTransformer2DModel.from_pretrained(target / "transformer"),
            "connector": Step1XConnector.from_pretrained(target / "connector"),
        }
        loaded = quiet(FluxStep1XEditPipeline(**{**pipe.components, **parts}))
        torch.testing.assert_close(draw(loaded, **EMBEDS), draw(pipe, **EMBEDS))
        assert convert([str(source), str(target), *sizes]) == 1

    def test_other_files_are_refused(self, pipe):
        weights = published(pipe)
        with pytest.raises(ValueError, match="not a connector of Step1X-Edit"):
            Step1XConnector.from_single_file(pipe.transformer.state_dict())
        with pytest.raises(ValueError, match="unknown: `connector.S.input_embedder_CA.weight`"):
            Step1XConnector.from_single_file({**weights, "connector.S.input_embedder_CA.weight": torch.zeros(2, 2)})
        del weights["connector.S.individual_token_refiner.blocks.1.norm2.bias"]
        with pytest.raises(ValueError, match="blocks.1.norm2.bias"):
            Step1XConnector.from_single_file(weights, num_attention_heads=2)

    def test_a_saved_pipeline_reloads_whole(self, whole, tmp_path):
        whole.save_pretrained(tmp_path)
        expected = draw(whole, "make it red")
        for loader in (FluxStep1XEditPipeline, DiffusionPipeline):
            loaded = quiet(loader.from_pretrained(tmp_path))
            assert type(loaded) is FluxStep1XEditPipeline
            assert type(loaded.mllm_processor) is QwenVLProcessor
            torch.testing.assert_close(draw(loaded, "make it red"), expected)

    def test_from_pipe_both_ways_and_the_shim(self, pipe, tmp_path):
        stock = quiet(FluxPipeline(**{**tiny_components(0), "transformer": pipe.transformer}))
        ours = quiet(FluxStep1XEditPipeline.from_pipe(stock, connector=pipe.connector))
        assert torch.equal(draw(ours, **EMBEDS), draw(pipe, **EMBEDS))
        assert ours.to_pipeline(FluxPipeline).transformer is pipe.transformer
        stock.save_pretrained(tmp_path)
        loaded = DiffusionPipeline.from_pretrained(
            tmp_path,
            custom_pipeline=diffusers_flux_ext.custom_pipeline("step1x_edit"),
            trust_remote_code=True,
            connector=pipe.connector,
        )
        assert torch.equal(draw(quiet(loaded), **EMBEDS), draw(pipe, **EMBEDS))
        bare = FluxStep1XEditPipeline.from_pretrained(
            tmp_path, connector=pipe.connector, mllm=None, **dict.fromkeys(TEXT_PARTS)
        )
        assert bare.text_encoder_2 is None
        assert torch.equal(draw(quiet(bare), **EMBEDS), draw(pipe, **EMBEDS))


class TestInputs:
    def test_an_instruction_over_the_limit_is_cut_and_says_so(self, whole, caplog):
        embeds, mask = whole.encode_instruction("x" * 3000, edited(), height=32, width=48)
        assert bool(mask.all())
        assert "but 640 fit" in caplog.text
        assert torch.isfinite(embeds).all()

    def test_quotes(self):
        assert cut_quotes('say "ab" now') == ['say "', "“a”", "“b”", '" now']
        assert cut_quotes("the dog's hat") == ['the dog"', "“s”", "“ ”", "“h”", "“a”", "“t”"]
        assert cut_quotes("the dog's hat", at_apostrophes=False) == ["the dog's hat"]
        assert cut_quotes("“a”") == ['"', "“a”", '"']

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"image": None}, "`image` holds no image"),
            ({"image": []}, "`image` holds no image"),
            ({"instruction_embeds": None}, "Exactly one of `prompt` and `instruction_embeds`"),
            ({"prompt": "make it red"}, "Exactly one of `prompt` and `instruction_embeds`"),
            ({"instruction_embeds": None, "prompt": "x"}, "no `mllm` or no `mllm_processor`.*`instruction_embeds`"),
            ({"negative_instruction_embeds": None}, "`negative_instruction_embeds`"),
            ({"instruction_embeds": torch.zeros(1, 4, 8)}, r"length, 32\).*got \(1, 4, 8\)"),
            ({"instruction_mask": torch.ones(1, 3)}, r"shape \(1, 3\); expected \(1, 7\)"),
            ({"negative_instruction_embeds": None, "negative_instruction_mask": torch.ones(1, 3)}, "given without"),
            ({"instruction_mask": torch.zeros(1, 7)}, "`instruction_mask` hides all tokens"),
            ({"instruction_embeds": None, "prompt": []}, "`prompt` is an empty list"),
            ({"prompt_2": "x"}, r"does not read \['prompt_2'\]"),
            ({"prompt_embeds_mask": torch.ones(1, 1)}, r"does not read \['prompt_embeds_mask'\]"),
            ({"size_level": 0}, "`size_level`, a number of pixels"),
            (
                {"image": [edited()] * 3, "instruction_embeds": instruction_embeds(0, 2), "latents": None},
                "2 samples, but there are 3",
            ),
            ({"conditions": [Step1XInstruction(tiny_connector(), edited(), "x")]}, "no `mllm`"),
        ],
    )
    def test_refused(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message):
            draw(pipe, **{**EMBEDS, **arguments})

    def test_refused_pictures_and_types(self, whole, pipe):
        with pytest.raises(ValueError, match="at most 200 times|1001 x 5"):
            whole.encode_instruction("x", edited(0, (1001, 5)), height=16, width=16 * 201)
        with pytest.raises(ValueError, match="`prompt` has 2 texts for 3 images"):
            draw(whole, ["a", "b"], image=[edited()] * 3, latents=None)
        with pytest.raises(ValueError, match="`prompt` has 2 texts for 3 images"):
            whole.encode_instruction(["a", "b"], [edited()] * 3, 32, 48)
        with pytest.raises(TypeError, match="`instruction_mask` .*is a dense tensor"):
            draw(pipe, **EMBEDS, instruction_mask=[1] * 7)
        with pytest.raises(ValueError, match="image_pad"):
            draw(whole, "put <|image_pad|> here")
        with pytest.raises(TypeError, match="is a Linear; expected a `Step1XConnector`"):
            Step1XInstruction(torch.nn.Linear(1, 1), edited(), "x")
        with pytest.raises(TypeError, match="`prompt` must be a text or a list of texts, got 5"):
            draw(pipe, 5)
        with pytest.raises(ValueError, match="no `connector`"):
            draw(quiet(FluxStep1XEditPipeline(**{**pipe.components, "connector": None})), **EMBEDS)
        with pytest.raises(ValueError, match="multiple of `num_attention_heads`"):
            Step1XConnector(hidden_size=10, num_attention_heads=3)
        with pytest.raises(TypeError, match="`size_level`, a number of pixels.*got '512'"):
            draw(pipe, **EMBEDS, size_level="512")
        with pytest.raises(TypeError, match="no_such"):
            draw(pipe, **EMBEDS, no_such=1)


def test_the_connector_is_saved_and_loaded(tmp_path):
    connector = tiny_connector(4)
    connector.save_pretrained(tmp_path)
    loaded = Step1XConnector.from_pretrained(tmp_path)
    inputs = (instruction_embeds(0), None, torch.tensor([0.5]))
    torch.testing.assert_close(loaded(*inputs)[0], connector(*inputs)[0])
