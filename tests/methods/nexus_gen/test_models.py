"""Nexus-Gen's language model, adapter and merger: published files, sizes, and what stays as in transformers."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.support.tiny.nexus_gen import (
    HIDDEN,
    pictures,
    published_decoder,
    published_name,
    tiny_adapter,
    tiny_language_model,
    tiny_merger,
    write_published_folder,
)
from diffusers_flux_ext import (
    FluxExtTransformer2DModel,
    NexusGenAdapter,
    NexusGenEditingMerger,
    NexusGenModel,
    load_nexus_gen_decoder,
)
from diffusers_flux_ext.inputs.qwen_vl import IMAGE_SPAN, chat_text, known_inputs, qwen_vl_inputs
from diffusers_flux_ext.methods.nexus_gen.checkpoint import split_decoder
from diffusers_flux_ext.methods.nexus_gen.prompts import chat_for, embed_prompts
from diffusers_flux_ext.testing import seeded, tiny_transformer


# The fingerprints of names and shapes by which the reference knows the published files.
FINGERPRINTS = {
    "language model": "2bd19e845116e4f875a0a048e27fc219",
    "generation": "3e6c61b0f9471135fc9c6d6a98e98b6d",
    "editing": "63c969fd37cce769a90aa781fbff5f81",
}
AXES = {"axes_dims_rope": (4, 6, 6)}
PICTURE_TOKENS = ("vision_start", "vision_end", "image_pad", "video_pad")
SECTION = {"mrope_section": (2, 3, 3)}


def fingerprint(shapes):
    names = [part for key, shape in shapes.items() for part in (f"{key}:{'_'.join(map(str, shape))}", key)]
    return hashlib.md5(",".join(sorted(names)).encode()).hexdigest()


class TestReleasedSizes:
    """The models' default sizes and the names that the loaders expect are those of the published files."""

    @pytest.mark.parametrize("part_class", [NexusGenAdapter, NexusGenEditingMerger])
    def test_the_decoders(self, part_class):
        with torch.device("meta"):
            part, transformer = part_class(), FluxExtTransformer2DModel(guidance_embeds=True)
            shapes = {key: value.shape for key, value in published_decoder(transformer, part).items()}
        assert fingerprint(shapes) == FINGERPRINTS["generation" if part_class is NexusGenAdapter else "editing"]

    def test_the_language_model(self):
        text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
                "num_key_value_heads": 4, "vocab_size": 152064}  # fmt: skip
        vision = {"hidden_size": 1280, "depth": 32, "num_heads": 16, "intermediate_size": 3420}
        with torch.device("meta"):
            model = NexusGenModel(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
        shapes = {published_name(key): value.shape for key, value in model.state_dict().items()}
        assert fingerprint(shapes) == FINGERPRINTS["language model"]
        assert model.image_grid == (18, 18)
        assert model.blank_image().size == (252, 252)


class TestLanguageModel:
    @pytest.fixture(scope="class")
    def stock(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("published")
        write_published_folder(folder)
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def test_the_rest_is_that_of_transformers(self, stock):
        model, processor = tiny_language_model()
        picture = pictures({"one": (90, 60)})["one"]
        inputs = known_inputs(qwen_vl_inputs(processor, chat_text(IMAGE_SPAN + "what is it?"), [picture]))
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, stock(**inputs).logits)
        pictures_begun = [processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in PICTURE_TOKENS]
        tokens = stock.generate(**inputs, max_new_tokens=20, suppress_tokens=pictures_begun)
        expected = tokens[0, inputs["input_ids"].shape[1] :]
        answer = model.describe(picture, "what is it?", processor=processor, max_new_tokens=20)
        assert answer == processor.tokenizer.decode(expected, skip_special_tokens=True)

    def test_a_processor_is_needed(self):
        with pytest.raises(ValueError, match="`processor` is missing: give"):
            tiny_language_model()[0].describe(question="what?")

    def test_a_plain_chat(self, stock):
        model, processor = tiny_language_model()
        inputs = known_inputs(qwen_vl_inputs(processor, chat_text("the red sign")))
        expected = stock.generate(**inputs, max_new_tokens=3, suppress_tokens=None)[0, inputs["input_ids"].shape[1] :]
        options = {"max_new_tokens": 3, "suppress_tokens": None}
        answer = model.describe(question="the red sign", processor=processor, **options)
        assert answer == processor.tokenizer.decode(expected, skip_special_tokens=True)

    def test_saved_and_reloaded(self, tmp_path):
        model, processor = tiny_language_model()
        model.save_pretrained(tmp_path)
        loaded = NexusGenModel.from_pretrained(tmp_path)
        expected, found = model.state_dict(), loaded.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(weight, found[key]) for key, weight in expected.items())

    def test_another_number_of_image_tokens(self, tmp_path):
        config = tiny_language_model()[0].config.to_dict() | {"num_image_tokens": 4}
        NexusGenModel(Qwen2_5_VLConfig(**config)).save_pretrained(tmp_path)
        model = NexusGenModel.from_pretrained(tmp_path).eval()
        assert model.image_grid == (4, 4)
        embeds = embed_prompts(model, tiny_language_model()[1], ["a cat"])
        assert embeds["image_embeds"].shape == (1, 4, HIDDEN)

    def test_the_chats(self):
        picture = "<|vision_start|><|image_pad|><|vision_end|>"
        start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        drawn = f"<|im_end|>\n<|im_start|>assistant\nHere is an image based on the description: {picture}<|im_end|>\n"
        edited = f"<|im_end|>\n<|im_start|>assistant\nHere is the image: {picture}<|im_end|>\n"
        english = f"{start}Generate an image according to the following description: a cat{drawn}"
        assert chat_for("a cat", has_image=False) == english
        assert chat_for("猫", has_image=False, language="zh") == f"{start}根据以下描述生成一张图像：猫{drawn}"
        for language in ("en", "zh"):
            assert chat_for("a hat", has_image=True, language=language) == f"{start}{picture} a hat{edited}"
        assert chat_for("in <image> a hat", has_image=True) == f"{start}in {picture} a hat{edited}"


class TestDecoderFiles:
    @pytest.mark.parametrize("part", [tiny_adapter(1), tiny_merger(1, num_layers=2)])
    @pytest.mark.parametrize("pickled", [True, False])
    def test_both_parts(self, part, pickled, tmp_path):
        transformer, path = tiny_transformer(2), tmp_path / ("decoder.bin" if pickled else "decoder.safetensors")
        weights = published_decoder(transformer, part)
        (torch.save if pickled else save_file)(weights, path)
        loaded = load_nexus_gen_decoder(path, **SECTION, **AXES)
        assert type(loaded[1]) is type(part)
        for model, expected in zip(loaded, (transformer, part)):
            assert model.state_dict().keys() == expected.state_dict().keys()
            assert all(torch.equal(weight, expected.state_dict()[key]) for key, weight in model.state_dict().items())
        assert {key: value for key, value in loaded[1].config.items() if key[0] != "_"} == {
            key: value for key, value in part.config.items() if key[0] != "_"
        }
        half, _ = load_nexus_gen_decoder(weights, dtype=torch.bfloat16, **SECTION, **AXES)
        assert half.dtype == torch.bfloat16

    def test_the_last_norm_is_turned_as_by_the_reference(self):
        from benchmarks.support.reference import import_reference

        converters = import_reference("diffsynth.utils.state_dict_converters.flux_dit")
        norm = torch.randn(6144, 2, generator=seeded(0))
        weights = {"pipe.dit.final_norm_out.linear.weight": norm}
        expected = converters.FluxDiTStateDictConverter(weights)
        found = split_decoder({**weights, **tiny_adapter().state_dict()})[0]
        assert torch.equal(found["final_norm_out.linear.weight"], expected["final_norm_out.linear.weight"])

    def test_a_part_alone(self, tmp_path):
        torch.save(tiny_adapter(1).state_dict(), tmp_path / "adapter.bin")
        loaded = NexusGenAdapter.from_single_file(tmp_path / "adapter.bin")
        assert torch.equal(loaded.adapter[0].weight, tiny_adapter(1).adapter[0].weight)
        merger = tiny_merger(1)
        assert NexusGenEditingMerger.from_single_file(merger.state_dict(), **SECTION).config.hidden_size == HIDDEN

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda weights: {"a": torch.zeros(1)}, "holds `pipe.dit.*` and either"),
            (lambda weights: {**weights, "b": torch.zeros(1)}, "but this has `b`"),
            (lambda weights: tiny_adapter().state_dict(), "but this has `adapter.0.bias`"),
            (lambda weights: {**weights, **published_decoder(tiny_transformer(), tiny_merger())}, "holds `pipe.dit"),
            (lambda weights: {key: v for key, v in weights.items() if "adapter.4" not in key}, "`adapter.4.bias`"),
        ],
    )
    def test_other_files(self, change, message):
        with pytest.raises(ValueError, match=message):
            load_nexus_gen_decoder(change(published_decoder(tiny_transformer(), tiny_adapter())), **AXES)

    def test_the_other_decoders_file(self):
        weights = published_decoder(tiny_transformer(), tiny_adapter())
        with pytest.raises(ValueError, match="editing decoder.*`edit_decoder.bin`"):
            NexusGenEditingMerger.from_single_file(weights)

    def test_a_pickle_with_code_is_refused(self, tmp_path):
        torch.save({"a": seeded}, tmp_path / "generation_decoder.bin")
        with pytest.raises(ValueError, match="not a pickle of plain tensors"):
            load_nexus_gen_decoder(tmp_path / "generation_decoder.bin")


class TestMerger:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"grid": (18, 16)}, r"grid of \(18, 16\).*9 x 8 embeddings, got 81"),
            ({"reference_embeds": torch.zeros(1, 4, HIDDEN)}, "belong together"),
            ({"reference_grid": (4, 4)}, "belong together"),
            ({"reference_embeds": torch.zeros(1, 5, HIDDEN), "reference_grid": (4, 4)}, "embeddings, got 5"),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            tiny_merger()(**{"image_embeds": torch.zeros(1, 81, HIDDEN), "grid": (18, 18), **arguments})

    @pytest.mark.parametrize("sizes", [{"mrope_section": (2, 2, 2)}, {"num_key_value_heads": 3}])
    def test_sizes_that_do_not_fit(self, sizes):
        with pytest.raises(ValueError, match="must add up to half of a head"):
            tiny_merger(**sizes)

    def test_saved_and_reloaded_and_trained(self, tmp_path):
        merger, embeds = tiny_merger(4), torch.randn(1, 81, HIDDEN, generator=seeded(0))
        merger.save_pretrained(tmp_path)
        loaded = NexusGenEditingMerger.from_pretrained(tmp_path)
        assert torch.equal(loaded(embeds, (18, 18)), merger(embeds, (18, 18)))
        loaded.requires_grad_(True)(embeds, (18, 18)).square().sum().backward()
        assert all(weight.grad is not None for weight in loaded.parameters())
