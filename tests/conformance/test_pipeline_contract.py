"""What every diffusers pipeline can do, for ours: with entities, and compared with `FluxPipeline`."""

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FluxPipeline,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.group_offloading import ModuleGroup
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import nn
from torch.testing import assert_close

from diffusers_flux_ext import FluxConditionedPipeline, FluxEliGenPipeline
from tests.fixtures.tiny import call_kwargs, quiet, seeded, tiny_components, tiny_pipeline


ENTITIES = {"entity_prompts": ["a red cat", "a dog"], "entity_masks": [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 0.5)]}
CLASSES = [FluxConditionedPipeline, FluxEliGenPipeline]
NUM_BLOCKS = 5
EXACT = {"rtol": 0, "atol": 0}


@dataclass(frozen=True, eq=False)
class Case:
    """A pipeline class and the inputs that it has besides `FluxPipeline`'s."""

    pipeline_class: Any
    inputs: Mapping[str, Any]

    def run(self, pipe: Any, **inputs: Any) -> torch.Tensor:
        return pipe(**call_kwargs(**{**self.inputs, **inputs})).images


CASES = {"conditioned": Case(FluxConditionedPipeline, {}), "eligen": Case(FluxEliGenPipeline, ENTITIES)}


@cache
def output_of(case: Case, num_inference_steps: int) -> torch.Tensor:
    return case.run(tiny_pipeline(case.pipeline_class), num_inference_steps=num_inference_steps)


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def pipe(case: Case) -> Any:
    return tiny_pipeline(case.pipeline_class)


@pytest.fixture
def base(case: Case) -> torch.Tensor:
    return output_of(case, 3)


@pytest.fixture(params=CLASSES)
def pipeline_class(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def pair(pipeline_class: Any) -> tuple[Any, Any]:
    """`FluxPipeline` and one of ours, of equal components."""
    return tiny_pipeline(FluxPipeline), tiny_pipeline(pipeline_class)


def modules_of(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def different(output: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((output - other).abs().max() > 1e-4)


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


def count_calls(module: nn.Module) -> list[None]:
    """A list that grows with every forward call."""
    calls: list[None] = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls


def timestep_of(pipe: Any) -> Callable[[], float]:
    return lambda: float(pipe.current_timestep)


CACHES: dict[str, Callable[[Any], Any]] = {
    "first block": lambda _: FirstBlockCacheConfig(threshold=10.0),
    "taylor": lambda _: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2, max_order=1),
    "mag": lambda _: MagCacheConfig(num_inference_steps=6, mag_ratios=torch.ones(6), retention_ratio=0.2),
    "pyramid": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1001),
        current_timestep_callback=timestep_of(pipe),
    ),
    "faster": lambda pipe: FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 999),
        attention_weight_callback=lambda _: 0.5,
        current_timestep_callback=timestep_of(pipe),
        is_guidance_distilled=True,
    ),
}


class TestCaches:
    @pytest.mark.parametrize("config", CACHES.values(), ids=CACHES)
    def test_a_cache_skips_attention_and_leaves_no_trace(self, case, pipe, config):
        calls = count_calls(pipe.transformer.single_transformer_blocks[-1].attn.to_q)
        pipe.transformer.enable_cache(config(pipe))
        first = case.run(pipe, num_inference_steps=6)
        assert 0 < len(calls) < 6
        assert_close(case.run(pipe, num_inference_steps=6), first, **EXACT)
        pipe.transformer.disable_cache()
        calls.clear()
        assert_close(case.run(pipe, num_inference_steps=6), output_of(case, 6), **EXACT)
        assert len(calls) == 6

    @pytest.mark.parametrize("config", CACHES.values(), ids=CACHES)
    def test_a_cache_gives_what_it_gives_flux_pipeline(self, pair, config):
        # The branches of guidance share the state of the caches that have no contexts, so their order matters too.
        outputs = []
        for pipe in pair:
            pipe.transformer.enable_cache(config(pipe))
            inputs = call_kwargs(num_inference_steps=6, negative_prompt="ugly", true_cfg_scale=2.0)
            outputs.append(pipe(**inputs).images)
        assert_close(outputs[1], outputs[0], **EXACT)

    def test_a_cache_that_never_hits_changes_nothing(self, case, pipe):
        inputs = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
        uncached = case.run(pipe, **inputs)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
        assert_close(case.run(pipe, **inputs), uncached, **EXACT)


def lora_layers(module: nn.Module, targets: tuple[str, ...], seed: int, rank: int = 2) -> dict[str, torch.Tensor]:
    """Random LoRA weights of the linear layers of `module` whose names end in one of `targets`."""
    generator, layers = seeded(seed), {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(targets):
            layers[f"{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=generator) / 4
            layers[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator) / 4
    return layers


@cache
def lora_of(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Layers of a LoRA per component."""
    pipe = tiny_pipeline(FluxPipeline)
    return {
        "transformer": lora_layers(pipe.transformer, ("to_q", "to_v", "proj_out"), seed),
        "text_encoder": lora_layers(pipe.text_encoder, ("q_proj", "v_proj"), seed),
    }


def add_lora(pipe: Any, seed: int = 0, name: str = "style") -> None:
    layers = lora_of(seed)
    pipe.load_lora_weights(
        {f"{part}.{key}": value for part in layers for key, value in layers[part].items()}, adapter_name=name
    )


class TestLora:
    @pytest.fixture
    def adapted(self, case: Case, pipe: Any, base: torch.Tensor) -> torch.Tensor:
        """The output with an adapter, which `pipe` has from here on."""
        add_lora(pipe)
        output = case.run(pipe)
        assert different(output, base)
        return output

    def test_scales_of_the_call_and_of_the_adapter_agree(self, case, pipe, base, adapted):
        none = case.run(pipe, joint_attention_kwargs={"scale": 0.0})
        half = case.run(pipe, joint_attention_kwargs={"scale": 0.5})
        pipe.set_adapters("style", 0.0)
        assert_close(none, base, rtol=0, atol=1e-6)
        assert_close(case.run(pipe), base, rtol=0, atol=1e-6)
        pipe.set_adapters("style", 0.5)
        assert_close(case.run(pipe), half, rtol=0, atol=1e-5)
        assert different(half, base)
        assert different(half, adapted)
        pipe.set_adapters("style", 1.0)
        assert_close(case.run(pipe), adapted, rtol=0, atol=1e-6)

    def test_fusing_changes_nothing_and_is_undone(self, case, pipe, base, adapted):
        parts = ["transformer", "text_encoder"]
        pipe.fuse_lora(components=parts)
        assert pipe.num_fused_loras == 1
        assert_close(case.run(pipe), adapted, rtol=0, atol=1e-4)
        pipe.unfuse_lora(components=parts)
        assert pipe.num_fused_loras == 0
        assert_close(case.run(pipe), adapted, rtol=0, atol=1e-4)
        pipe.unload_lora_weights()
        assert_close(case.run(pipe), base, rtol=0, atol=1e-4)

    def test_unloading_restores_every_bit(self, case, pipe, base, adapted):
        pipe.unload_lora_weights()
        assert pipe.get_list_adapters() == {}
        assert_close(case.run(pipe), base, **EXACT)

    def test_disabling_and_deleting(self, case, pipe, base, adapted):
        pipe.disable_lora()
        assert_close(case.run(pipe), base, **EXACT)
        pipe.enable_lora()
        assert_close(case.run(pipe), adapted, **EXACT)
        pipe.delete_adapters("style")
        assert_close(case.run(pipe), base, **EXACT)

    def test_several_adapters_are_chosen_by_name(self, case, pipe, adapted):
        add_lora(pipe, seed=1, name="other")
        assert pipe.get_list_adapters() == dict.fromkeys(["transformer", "text_encoder"], ["style", "other"])
        pipe.set_adapters(["style", "other"])
        both = case.run(pipe)
        pipe.set_adapters("other")
        other = case.run(pipe)
        assert all(different(*pictures) for pictures in [(both, other), (both, adapted), (other, adapted)])
        pipe.set_adapters("style")
        assert_close(case.run(pipe), adapted, **EXACT)
        with pytest.raises(ValueError, match="not in the list of present adapters"):
            pipe.set_adapters("missing")

    def test_saved_weights_reload(self, case, pipe, adapted, tmp_path):
        layers = {f"{part}_lora_layers": weights for part, weights in lora_of(0).items()}
        case.pipeline_class.save_lora_weights(tmp_path, **layers)
        fresh = tiny_pipeline(case.pipeline_class)
        fresh.load_lora_weights(tmp_path)
        assert_close(case.run(fresh), adapted, **EXACT)

    def test_a_lora_gives_what_it_gives_flux_pipeline(self, pair):
        for pipe in pair:
            add_lora(pipe)
        stock, ours = (pipe(**call_kwargs(joint_attention_kwargs={"scale": 0.7})).images for pipe in pair)
        assert_close(ours, stock, **EXACT)


def ip_adapter(transformer: Any, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter in the form that `load_ip_adapter` takes."""
    generator, config, width = seeded(seed), transformer.config, transformer.inner_dim
    text, pooled, tokens = config.joint_attention_dim, config.pooled_projection_dim, 4
    shapes = {"proj.weight": (tokens * text, pooled), "proj.bias": (tokens * text,)}
    shapes |= {"norm.weight": (text,), "norm.bias": (text,)}
    layers = {
        f"{block}.to_{kind}_ip.{part}": (width, text) if part == "weight" else (width,)
        for block in range(config.num_layers)
        for kind in "kv"
        for part in ("weight", "bias")
    }
    return {
        "image_proj": {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        "ip_adapter": {name: torch.randn(shape, generator=generator) for name, shape in layers.items()},
    }


def add_ip_adapters(pipe: Any, count: int = 1) -> dict[str, Any]:
    """Load adapters; returns the arguments of the call that use them."""
    weights = [ip_adapter(pipe.transformer, seed) for seed in range(count)]
    pipe.load_ip_adapter(weights, weight_name=[""] * count, image_encoder_pretrained_model_name_or_path=None)
    pooled = pipe.transformer.config.pooled_projection_dim
    names = ("ip_adapter_image_embeds", "negative_ip_adapter_image_embeds")
    return {
        name: [torch.randn(1, 1, pooled, generator=seeded(10 * sign + index)) for index in range(count)]
        for sign, name in enumerate(names)
    }


class TestIPAdapter:
    @pytest.mark.parametrize("count", [1, 2])
    def test_its_scale_and_unloading(self, case, pipe, base, count):
        embeds = add_ip_adapters(pipe, count)
        pipe.set_ip_adapter_scale(0.0)
        assert_close(case.run(pipe, **embeds), base, rtol=0, atol=1e-5)
        pipe.set_ip_adapter_scale(1.0)
        assert different(case.run(pipe, **embeds), base)
        pipe.unload_ip_adapter()
        assert_close(case.run(pipe), base, **EXACT)

    def test_each_branch_of_guidance_has_its_own_picture(self, case, pipe):
        inputs = {**add_ip_adapters(pipe), "negative_prompt": "ugly", "true_cfg_scale": 2.0}
        output = case.run(pipe, **inputs)
        same = {**inputs, "negative_ip_adapter_image_embeds": inputs["ip_adapter_image_embeds"]}
        assert different(case.run(pipe, **same), output)

    def test_it_gives_what_it_gives_flux_pipeline(self, pair):
        inputs = [add_ip_adapters(pipe, 2) for pipe in pair]
        guided = {"negative_prompt": "ugly", "true_cfg_scale": 2.0, "num_images_per_prompt": 2}
        stock, ours = (pipe(**call_kwargs(**guided, **embeds)).images for pipe, embeds in zip(pair, inputs))
        assert_close(ours, stock, **EXACT)


class TestTextualInversion:
    def test_a_learned_word_gives_what_it_gives_flux_pipeline(self, pipeline_class):
        word = {"<thing>": torch.randn(24, generator=seeded(3))}
        outputs = []
        for kind in (FluxPipeline, pipeline_class):
            components = tiny_components()
            # The tokenizers are shared by all tests.
            pipe = tiny_pipeline(kind, tokenizer=copy.deepcopy(components["tokenizer"]))
            before = pipe(**call_kwargs(prompt="a <thing>")).images
            pipe.load_textual_inversion(word, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
            outputs.append(pipe(**call_kwargs(prompt="a <thing>")).images)
            assert different(before, outputs[-1])
        assert_close(outputs[1], outputs[0], **EXACT)


class TestExecution:
    @pytest.fixture
    def backend_calls(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
        """Grows with every attention of the backend `_native_math`; the process' own backend is put back."""
        name, calls = AttentionBackendName._NATIVE_MATH, []
        function = _AttentionBackendRegistry._backends[name]

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            return function(*args, **kwargs)

        monkeypatch.setitem(_AttentionBackendRegistry._backends, name, counted)
        before, _ = _AttentionBackendRegistry.get_active_backend()
        yield calls
        _AttentionBackendRegistry.set_active_backend(before)

    def test_an_attention_backend_is_used_in_every_block(self, case, pipe, base, backend_calls):
        active, _ = _AttentionBackendRegistry.get_active_backend()
        pipe.transformer.set_attention_backend("_native_math")
        # Only the processors' own setting shall count.
        _AttentionBackendRegistry.set_active_backend(active)
        assert_close(case.run(pipe), base, rtol=0, atol=1e-5)
        assert len(backend_calls) >= 3 * NUM_BLOCKS
        pipe.transformer.reset_attention_backend()
        backend_calls.clear()
        assert_close(case.run(pipe), base, **EXACT)
        assert not backend_calls

    def test_fused_projections_change_rounding_only(self, case, pipe, base):
        pipe.transformer.fuse_qkv_projections()
        assert pipe.transformer.transformer_blocks[0].attn.fused_projections
        assert_close(case.run(pipe), base, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("level", [{"offload_type": "leaf_level"}, {"num_blocks_per_group": 1}])
    def test_group_offloading_moves_weights_and_changes_nothing(self, case, pipe, base, monkeypatch, level):
        moved, onload = [], ModuleGroup.onload_

        def recorded(group: ModuleGroup) -> None:
            moved.append(group)
            onload(group)

        monkeypatch.setattr(ModuleGroup, "onload_", recorded)
        pipe.enable_group_offload(onload_device=torch.device("cpu"), **{"offload_type": "block_level", **level})
        assert_close(case.run(pipe), base, **EXACT)
        assert len(set(map(id, moved))) > NUM_BLOCKS

    def test_layerwise_casting_stores_eight_bits(self, case, pipe, base):
        pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        output = case.run(pipe)
        assert pipe.transformer.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
        assert different(output, base)
        assert (output - base).abs().mean() < 0.1

    def test_layerwise_casting_gives_what_it_gives_flux_pipeline(self, pair):
        for pipe in pair:
            pipe.to(dtype=torch.bfloat16)
            pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
        stock, ours = (pipe(**call_kwargs()).images for pipe in pair)
        assert_close(ours, stock, **EXACT)

    def test_vae_tiling_and_slicing_reach_the_vae(self, pipe):
        pipe.vae.enable_tiling()
        pipe.vae.enable_slicing()
        assert pipe.vae.use_tiling
        assert pipe.vae.use_slicing


def test_a_single_folder_serves_all_pipeline_classes(tmp_path: Path) -> None:
    tiny_pipeline(FluxPipeline).save_pretrained(tmp_path)
    stock, *ours = (quiet(kind.from_pretrained(tmp_path))(**call_kwargs()).images for kind in (FluxPipeline, *CLASSES))
    for output in ours:
        assert_close(output, stock, **EXACT)
