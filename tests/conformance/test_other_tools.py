"""Tools of others on these pipelines, with the real packages: what they do on a stock pipeline, they do here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from diffusers import FluxPipeline

from benchmarks.support.lora_files import make
from benchmarks.support.tiny.timestep_lora import velocity
from diffusers_flux_ext import EntityRegions, FluxConditionedPipeline
from diffusers_flux_ext.testing import call_kwargs, seeded, tiny_pipeline, tiny_transformer


BOTH = [FluxPipeline, FluxConditionedPipeline]
ENTITIES = EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)], max_sequence_length=16)


def image(pipe: Any, **overrides: Any) -> torch.Tensor:
    return pipe(**call_kwargs(**overrides)).images


class TestCompel:
    """Prompts with weights, as embeddings."""

    @staticmethod
    def embeds(pipe: Any, text: str) -> dict[str, torch.Tensor]:
        compel = pytest.importorskip("compel", reason="compel is not installed")
        found = compel.CompelForFlux(pipe)(text)
        return {"prompt": None, "prompt_embeds": found.embeds, "pooled_prompt_embeds": found.pooled_embeds}

    def test_weights_count_as_on_a_stock_pipeline(self):
        text = "a (big)1.5 cat on the (table)0.5"
        images = [image(pipe, **self.embeds(pipe, text)) for pipe in map(tiny_pipeline, BOTH)]
        assert torch.equal(*images)
        pipe = tiny_pipeline(FluxConditionedPipeline)
        assert (image(pipe, **self.embeds(pipe, "a big cat on the table")) - images[0]).abs().max() > 1e-4

    def test_beside_a_condition(self):
        pipe = tiny_pipeline(FluxConditionedPipeline)
        given = self.embeds(pipe, "a (big)1.5 cat")
        assert (image(pipe, conditions=[ENTITIES], **given) - image(pipe, **given)).abs().max() > 1e-4


class TestParaAttention:
    """Its first block cache; context parallelism needs several accelerators."""

    @staticmethod
    def cached(kind: Any, threshold: float, monkeypatch: Any) -> torch.Tensor:
        name = "para_attn.first_block_cache.diffusers_adapters"
        cache = pytest.importorskip(name, reason="para-attn is not installed")
        # It replaces the call of the class.
        monkeypatch.setattr(kind, "__call__", kind.__call__)
        monkeypatch.setattr(kind, "_is_cached", False, raising=False)
        pipe = tiny_pipeline(kind, transformer=tiny_transformer(0))
        cache.apply_cache_on_pipe(pipe, residual_diff_threshold=threshold)
        return image(pipe, num_inference_steps=4)

    @pytest.mark.parametrize("threshold", [0.0, 0.9])
    def test_steps_are_skipped_as_on_a_stock_pipeline(self, threshold, monkeypatch):
        try:
            stock = self.cached(FluxPipeline, threshold, monkeypatch)
        except TypeError as error:
            pytest.skip(f"this version of para-attn does not run in diffusers' own pipeline: {error}")
        assert torch.equal(self.cached(FluxConditionedPipeline, threshold, monkeypatch), stock)


class TestLycoris:
    """Files that the library itself writes, against the library's own layers."""

    @staticmethod
    @contextmanager
    def network(transformer: Any, algorithm: str, **settings: Any) -> Iterator[Any]:
        lycoris = pytest.importorskip("lycoris", reason="lycoris-lora is not installed")
        lycoris.LycorisNetwork.apply_preset({"target_module": ["FluxTransformerBlock", "FluxSingleTransformerBlock"]})
        made = lycoris.create_lycoris(
            transformer, 1.0, linear_dim=4, linear_alpha=2.0, algo=algorithm, factor=4, **settings
        )
        made.apply_to()
        try:
            yield made
        finally:
            made.restore()

    @pytest.mark.parametrize(
        "algorithm, settings",
        [("lora", {}), ("loha", {}), ("lokr", {}), ("full", {}), ("lora", {"dora_wd": True})],
    )
    def test_a_file_is_what_the_library_computes(self, algorithm, settings, tmp_path):
        transformer = tiny_transformer(0)
        plain = velocity(transformer, [500.0])
        with self.network(transformer, algorithm, **settings) as network:
            with torch.no_grad():
                for name, weight in network.named_parameters():
                    if "dora" not in name:
                        weight += 0.1 * torch.randn(weight.shape, generator=seeded(len(name)))
            expected = velocity(transformer, [500.0])
            network.save_weights(str(tmp_path / "x.safetensors"), torch.float32, {})
        assert (expected - plain).abs().max() > 1e-3
        pipe = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0))
        pipe.load_lora_weights(tmp_path / "x.safetensors", "one")
        assert (velocity(pipe.transformer, [500.0]) - expected).abs().max() < 1e-4


class TestHotSwap:
    """PEFT exchanges the weights of an adapter in place, as compiled models need it."""

    @pytest.mark.parametrize("kind", BOTH)
    def test_the_second_lora_takes_the_place_of_the_first(self, kind):
        first, second = make("diffusers_peft"), make("diffusers_peft")
        second = {key: 0.5 * weight.flip(0) for key, weight in second.state_dict.items()}
        pipe = tiny_pipeline(kind, transformer=tiny_transformer(0))
        pipe.load_lora_weights(first.state_dict, adapter_name="one")
        layers = {name: id(module) for name, module in pipe.transformer.named_modules()}
        swapped = image(pipe)
        pipe.load_lora_weights(second, adapter_name="one", hotswap=True)
        assert {name: id(module) for name, module in pipe.transformer.named_modules()} == layers
        other = tiny_pipeline(kind, transformer=tiny_transformer(0))
        other.load_lora_weights(second, adapter_name="one")
        assert torch.equal(image(pipe), image(other))
        assert not torch.equal(image(pipe), swapped)

    @pytest.mark.parametrize("kind", BOTH)
    def test_other_ranks_after_preparing(self, kind):
        pipe = tiny_pipeline(kind, transformer=tiny_transformer(0))
        layer = "transformer.transformer_blocks.0.attn.to_q"
        loras = [
            {
                f"{layer}.lora_A.weight": torch.randn(rank, 32, generator=seeded(rank)),
                f"{layer}.lora_B.weight": torch.randn(32, rank, generator=seeded(rank + 9)),
            }
            for rank in (2, 4)
        ]
        pipe.enable_lora_hotswap(target_rank=8)
        pipe.load_lora_weights(dict(loras[0]), adapter_name="one")
        pipe.load_lora_weights(dict(loras[1]), adapter_name="one", hotswap=True)
        other = tiny_pipeline(kind, transformer=tiny_transformer(0))
        other.load_lora_weights(dict(loras[1]), adapter_name="one")
        assert (image(pipe) - image(other)).abs().max() < 1e-5


SCRIPT = """
import sys
import torch
from accelerate import Accelerator
from diffusers_flux_ext import EntityRegions, FluxConditionedPipeline
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline

accelerator = Accelerator()
pipe = tiny_pipeline(FluxConditionedPipeline).to(accelerator.device)
pipe.transformer = accelerator.prepare(pipe.transformer)
entities = EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)], max_sequence_length=16)
with accelerator.split_between_processes(["a cat"]) as prompts:
    images = pipe(**call_kwargs(prompt=prompts, conditions=[entities])).images
torch.save(images, sys.argv[1])
"""


@pytest.mark.slow
def test_accelerate_launch(tmp_path):
    """One process: on CPUs `accelerate launch` starts several through MPI only."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ["--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", str(script), str(tmp_path / "x.pt")]
    # It exits where the script fails.
    launch_command(launch_command_parser().parse_args(command))
    expected = image(tiny_pipeline(FluxConditionedPipeline), prompt=["a cat"], conditions=[ENTITIES])
    # Another process may place tensors otherwise in memory, which some kernels round by.
    torch.testing.assert_close(torch.load(tmp_path / "x.pt", weights_only=True), expected, rtol=0, atol=1e-5)
