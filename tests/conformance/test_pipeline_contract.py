"""What every diffusers pipeline can do, for ours: with entities, and compared with `FluxPipeline`."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
)
from torch.testing import assert_close

from diffusers_flux_ext.testing import call_kwargs, different, quiet, seeded, tiny_components, tiny_pipeline
from tests.fixtures.contract import CLASSES, EXACT, count_calls, modules_of


pytestmark = pytest.mark.versions


class TestInterface:
    def test_the_call_starts_with_the_arguments_of_flux_pipeline(self, pipeline_class):
        ours = inspect.signature(pipeline_class.__call__).parameters
        for position, (name, stock) in enumerate(inspect.signature(FluxPipeline.__call__).parameters.items()):
            assert list(ours)[position] == name
            assert ours[name].kind == stock.kind
            default = ours[name].default
            assert (list(default) if isinstance(default, tuple) else default) == stock.default, name

    def test_every_argument_is_optional(self, pipeline_class):
        parameters = list(inspect.signature(pipeline_class.__call__).parameters.values())[1:]
        assert [p.name for p in parameters if p.default is p.empty] == []

    def test_a_pipeline_is_its_components(self, case, pipe, base):
        assert pipe.components.keys() == tiny_pipeline(FluxPipeline).components.keys()
        assert_close(case.run(quiet(case.pipeline_class(**pipe.components))), base, **EXACT)

    def test_casting_reaches_every_module(self, case, pipe):
        pipe.to(dtype=torch.bfloat16)
        assert {part.dtype for part in modules_of(pipe).values()} == {torch.bfloat16}
        assert pipe.dtype == torch.bfloat16
        assert case.run(pipe).isfinite().all()


class TestFiles:
    @pytest.mark.parametrize("own_class", [True, False])
    def test_a_saved_pipeline_reloads_bit_equal(self, case, pipe, base, tmp_path, own_class):
        pipe.save_pretrained(tmp_path)
        loaded = quiet((case.pipeline_class if own_class else DiffusionPipeline).from_pretrained(tmp_path))
        assert type(loaded) is case.pipeline_class
        assert_close(case.run(loaded), base, **EXACT)

    def test_the_index_names_every_component(self, case, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["_class_name"] == case.pipeline_class.__name__
        for name, part in pipe.components.items():
            assert index[name][1] == (None if part is None else type(part).__name__)
            assert (tmp_path / name).is_dir() == (part is not None)

    @pytest.mark.parametrize(("variant", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
    def test_variants_reload(self, case, pipe, tmp_path, variant, dtype):
        pipe.to(dtype=dtype).save_pretrained(tmp_path, variant=variant)
        loaded = case.pipeline_class.from_pretrained(tmp_path, variant=variant, torch_dtype=dtype)
        for name, part in modules_of(pipe).items():
            reloaded = getattr(loaded, name)
            assert reloaded.dtype == dtype
            # transformers keeps some of T5's layers in float32 when it loads float16.
            expected = dict(part.named_parameters())
            assert_close(dict(reloaded.named_parameters()), expected, **EXACT, check_dtype=False)

    def test_a_missing_variant_is_an_error(self, case, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="variant=fp16"):
            case.pipeline_class.from_pretrained(tmp_path, variant="fp16")

    def test_a_dtype_per_component(self, case, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        dtypes = {"transformer": torch.bfloat16, "default": torch.float16}
        loaded = case.pipeline_class.from_pretrained(tmp_path, torch_dtype=dtypes)
        for name, part in modules_of(loaded).items():
            assert part.dtype == dtypes.get(name, torch.float16)

    def test_a_device_map(self, case, pipe, base, tmp_path):
        pipe.save_pretrained(tmp_path)
        loaded = quiet(case.pipeline_class.from_pretrained(tmp_path, device_map="cpu"))
        assert_close(case.run(loaded), base, **EXACT)

    def test_optional_components_stay_absent(self, case, pipe, tmp_path):
        assert set(pipe._optional_components) == {"image_encoder", "feature_extractor"}
        pipe.save_pretrained(tmp_path)
        loaded = case.pipeline_class.from_pretrained(tmp_path)
        assert (loaded.image_encoder, loaded.feature_extractor) == (None, None)

    def test_components_given_at_loading_are_used(self, case, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        other = tiny_components(1)["transformer"]
        assert case.pipeline_class.from_pretrained(tmp_path, transformer=other).transformer is other


class TestCall:
    def test_a_batch_is_its_samples(self, case, pipe):
        prompts = ["a cat", "a dog on the red table"]
        batch = case.run(pipe, prompt=prompts, generator=[seeded(0), seeded(1)])
        singles = [case.run(pipe, prompt=prompt, generator=seeded(seed)) for seed, prompt in enumerate(prompts)]
        assert_close(batch, torch.cat(singles), rtol=0, atol=1e-5)
        assert different(batch[0], batch[1])

    def test_pictures_of_one_prompt_are_samples(self, case, pipe):
        pictures = case.run(pipe, num_images_per_prompt=2, generator=[seeded(0), seeded(1)])
        singles = [case.run(pipe, generator=seeded(seed)) for seed in range(2)]
        assert_close(pictures, torch.cat(singles), rtol=0, atol=1e-5)

    def test_pictures_per_prompt_of_a_batch_come_in_order(self, case, pipe):
        generators = [seeded(0) for _ in range(4)]
        pictures = case.run(pipe, prompt=["a cat", "a dog"], num_images_per_prompt=2, generator=generators)
        assert_close(pictures[0], pictures[1], rtol=0, atol=1e-5)
        assert_close(pictures[2], pictures[3], rtol=0, atol=1e-5)
        assert different(pictures[0], pictures[2])

    def test_output_types_show_the_same_picture(self, case, pipe, base):
        array = case.run(pipe, output_type="np")
        assert_close(torch.from_numpy(array).permute(0, 3, 1, 2), base, **EXACT)
        pictures = case.run(pipe, output_type="pil")
        assert [picture.size for picture in pictures] == [(48, 32)]
        assert np.abs(np.asarray(pictures[0]) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6
        assert case.run(pipe, output_type="latent").shape == (1, 6, 64)

    def test_a_tuple_holds_the_same_pictures(self, case, pipe, base):
        output = pipe(**call_kwargs(**case.inputs, return_dict=False))
        assert isinstance(output, tuple)
        assert_close(output[0], base, **EXACT)

    def test_latents_replace_the_noise(self, case, pipe, base):
        noise, _ = pipe.prepare_latents(1, 16, 32, 48, torch.float32, torch.device("cpu"), seeded())
        assert_close(case.run(pipe, latents=noise, generator=seeded(5)), base, **EXACT)
        assert different(case.run(pipe, generator=seeded(5)), base)

    def test_a_second_prompt_is_for_t5(self, case, pipe, base):
        assert different(case.run(pipe, prompt_2="a blue bird"), base)

    def test_guidance_is_seen_by_the_model(self, case, pipe, base):
        assert different(case.run(pipe, guidance_scale=1.0), base)
        assert (pipe.guidance_scale, pipe.num_timesteps, pipe.current_timestep) == (1.0, 3, None)

    def test_true_cfg_equals_true_cfg_from_embeddings(self, case, pipe, base):
        texts = case.run(pipe, negative_prompt="blurry", true_cfg_scale=3.0)
        negative = dict(zip(NEGATIVE, pipe.encode_prompt("blurry", None, max_sequence_length=16)))
        assert_close(case.run(pipe, **negative, true_cfg_scale=3.0), texts, **EXACT)
        assert different(texts, base)
        assert_close(case.run(pipe, **negative, true_cfg_scale=1.0), base, **EXACT)

    def test_embeddings_of_the_branches_must_match(self, case, pipe):
        positive = dict(zip(POSITIVE, pipe.encode_prompt("a cat", None, max_sequence_length=16)))
        negative = dict(zip(NEGATIVE, pipe.encode_prompt("a cat", None, max_sequence_length=8)))
        with pytest.raises(ValueError, match="must have the same shape when passed directly"):
            case.run(pipe, prompt=None, **positive, **negative, true_cfg_scale=2.0)
        assert case.run(pipe, prompt=None, **positive, **negative).isfinite().all()

    def test_text_encoding_and_denoising_run_in_separate_pipelines(self, pipeline_class):
        components = tiny_components()
        text = {name for name in components if name.startswith(("text", "tokenizer"))}
        encoder = pipeline_class(**{name: part if name in text else None for name, part in components.items()})
        embeds = dict(zip(POSITIVE, encoder.encode_prompt("a cat", None, max_sequence_length=16)))
        rest = quiet(pipeline_class(**{name: None if name in text else part for name, part in components.items()}))
        whole = quiet(pipeline_class(**components))(**call_kwargs(prompt="a cat")).images
        assert_close(rest(**call_kwargs(prompt=None, **embeds)).images, whole, **EXACT)

    def test_the_vae_may_be_on_another_device(self, case, pipe):
        pipe.vae.to("meta")
        assert case.run(pipe).device.type == "meta"


POSITIVE = ("prompt_embeds", "pooled_prompt_embeds")
NEGATIVE = tuple(f"negative_{name}" for name in POSITIVE)


class TestCallbacks:
    def test_a_callback_gets_what_it_asks_for(self, case, pipe, base):
        seen = []

        def note(pipe: Any, index: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append((index, float(timestep), float(pipe.current_timestep), sorted(tensors)))
            return tensors

        names = pipe._callback_tensor_inputs
        output = case.run(pipe, callback_on_step_end=note, callback_on_step_end_tensor_inputs=names)
        assert_close(output, base, **EXACT)
        assert [index for index, *_ in seen] == [0, 1, 2]
        assert all(time == current and given == sorted(names) for _, time, current, given in seen)

    def test_only_listed_names_may_be_asked_for(self, case, pipe):
        with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
            case.run(pipe, callback_on_step_end_tensor_inputs=["height"])

    def test_returned_latents_are_used(self, case, pipe):
        def erase(pipe: Any, index: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"latents": torch.zeros_like(tensors["latents"])} if index == 2 else {}

        assert case.run(pipe, callback_on_step_end=erase, output_type="latent").count_nonzero() == 0

    def test_returned_prompt_embeds_are_used(self, case, pipe, base):
        def forget(pipe: Any, index: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"prompt_embeds": torch.zeros_like(tensors["prompt_embeds"])}

        names = ["prompt_embeds"]
        assert different(case.run(pipe, callback_on_step_end=forget, callback_on_step_end_tensor_inputs=names), base)

    def test_an_interrupt_stops_the_model(self, case, pipe):
        calls = count_calls(pipe.transformer)

        def stop(pipe: Any, index: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = True
            return {}

        case.run(pipe, callback_on_step_end=stop)
        assert len(calls) == 1
        case.run(pipe)
        assert len(calls) == 4


def test_a_single_folder_serves_all_pipeline_classes(tmp_path: Path) -> None:
    tiny_pipeline(FluxPipeline).save_pretrained(tmp_path)
    stock, *ours = (quiet(kind.from_pretrained(tmp_path))(**call_kwargs()).images for kind in (FluxPipeline, *CLASSES))
    for output in ours:
        assert_close(output, stock, **EXACT)
