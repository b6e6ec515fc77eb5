"""LoRA-Fusion and timestep LoRA: one call of the transformer beside the reference's and beside LoRAs that add up.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.weight_methods --width 3072 --double 1 --single 1 --text 128 --image 128
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file

from benchmarks.support.lora_files.sizes import Sizes, double_modules, single_modules
from benchmarks.support.reference import import_reference, load_merged, load_reference_timestep_lora, reference_dit
from diffusers_flux_ext import FluxLoRAFusion, enable_lora_fusion, load_lora, load_timestep_lora
from diffusers_flux_ext.methods.lora_encoder.model import lora_layers


Call = Callable[[], torch.Tensor]


def make_transformer(args: argparse.Namespace) -> FluxTransformer2DModel:
    """Return a transformer of random weights; its heads have the released width."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=64, num_layers=args.double, num_single_layers=args.single, attention_head_dim=128,
        num_attention_heads=args.width // 128, joint_attention_dim=64, pooled_projection_dim=64, guidance_embeds=True,
    ).eval().requires_grad_(False)  # fmt: skip


def pipeline(transformer: FluxTransformer2DModel) -> FluxPipeline:
    """Return a pipeline of nothing but a transformer."""
    rest = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer, **rest)


def ours(pipe: FluxPipeline, values: dict[str, torch.Tensor]) -> Call:
    """Return a call of the transformer of a pipeline."""
    height, width = values["latents"].shape[2:]
    inputs = {
        "hidden_states": FluxPipeline._pack_latents(values["latents"], 1, 16, height, width),
        "encoder_hidden_states": values["prompt_emb"],
        "pooled_projections": values["pooled_prompt_emb"],
        "timestep": values["timestep"] / 1000,
        "guidance": values["guidance"],
        "img_ids": FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32),
        "txt_ids": values["text_ids"][0],
    }
    shape = (height * 8, width * 8, 8)
    return lambda: FluxPipeline._unpack_latents(pipe.transformer(**inputs).sample, *shape)


def theirs(transformer: FluxTransformer2DModel, values: dict[str, torch.Tensor]) -> tuple[Any, Call]:
    """Return the reference's pipeline, and a call of its model function."""
    pipe = import_reference("diffsynth.pipelines.flux_image").FluxImagePipeline(
        device="cpu", torch_dtype=torch.float32
    )
    pipe.dit = reference_dit(transformer)
    return pipe, lambda: pipe.model_fn(dit=pipe.dit, **values)


def fusion_sides(args: argparse.Namespace, values: dict[str, torch.Tensor], number: int) -> dict[str, Call]:
    """Return the sides: LoRAs added up, and under the gates in the reference and here."""
    sizes = {"num_layers": args.double, "num_single_layers": args.single, "inner_dim": args.width}
    fusion, layers = FluxLoRAFusion(**sizes).eval().requires_grad_(False), lora_layers(*sizes.values())
    loras = [
        {
            f"{name}.lora_{side}.weight": 0.02 * torch.randn(shape)
            for name, (_, inputs, outputs) in layers.items()
            for side, shape in (("A", (args.rank, inputs)), ("B", (outputs, args.rank)))
        }
        for _ in range(number)
    ]
    pipes = [pipeline(make_transformer(args)) for _ in range(2)]
    for pipe in pipes:
        for index, lora in enumerate(loras):
            load_lora(pipe, lora, f"lora_{index}")
    enable_lora_fusion(pipes[1], fusion)
    reference, call = theirs(make_transformer(args), values)
    reference.enable_lora_hot_loading(reference.dit)
    load_merged(reference, fusion, loras, [1.0] * number)
    return {"added up": ours(pipes[0], values), "ours": ours(pipes[1], values), "reference": call}


def timestep_sides(args: argparse.Namespace, values: dict[str, torch.Tensor]) -> dict[str, Call]:
    """Return a timestep LoRA on both sides, and an ordinary LoRA of the same layers."""
    sizes, shapes = Sizes(width=args.width), {}
    for index in range(args.double):
        shapes.update({n: s for n, s in double_modules(sizes, index).items() if "norm" not in n})
    for index in range(args.single):
        shapes.update({n: s for n, s in single_modules(sizes, index).items() if ".attn." in n})
    plain, timed = {}, {}
    for name, (outputs, inputs) in shapes.items():
        plain[f"base_model.model.{name}.lora_A.weight"] = 0.02 * torch.randn(args.rank, inputs)
        plain[f"base_model.model.{name}.lora_B.weight"] = 0.02 * torch.randn(outputs, args.rank)
        for part in ("gamma", "beta"):
            timed[f"base_model.model.{name}.lora_time_{part}.weight"] = torch.randn(args.rank, 256) / 16
            timed[f"base_model.model.{name}.lora_time_{part}.bias"] = torch.randn(args.rank)
    pipes = [pipeline(make_transformer(args)) for _ in range(2)]
    load_lora(pipes[0], plain)
    load_timestep_lora(pipes[1], {**plain, **timed})
    reference, call = theirs(make_transformer(args), values)
    with tempfile.TemporaryDirectory() as folder:
        save_file({**plain, **timed}, Path(folder) / "adapter_model.safetensors")
        load_reference_timestep_lora(reference, Path(folder) / "adapter_model.safetensors")
    return {"added up": ours(pipes[0], values), "ours": ours(pipes[1], values), "reference": call}


@torch.no_grad()
def measure(title: str, sides: dict[str, Call], repeats: int) -> str:
    """Return a row of medians of interleaved calls, after a check that both sides agree."""
    torch.testing.assert_close(sides["ours"](), sides["reference"](), atol=1e-3, rtol=1e-3)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    middle = SimpleNamespace(**{name.split()[0]: statistics.median(taken) for name, taken in times.items()})
    return (
        f"| {title} | {middle.added:.2f} | {middle.reference:.2f} | {middle.ours:.2f} | "
        f"{middle.ours / middle.added:.2f} | {middle.reference / middle.ours:.2f} |\n"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024, help="of the transformer, a multiple of 128")
    parser.add_argument("--double", type=int, default=1)
    parser.add_argument("--single", type=int, default=2)
    parser.add_argument("--text", type=int, default=128, help="text tokens")
    parser.add_argument("--image", type=int, default=256, help="image tokens, a multiple of 16")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--loras", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(1)
    values = {
        "latents": torch.randn(1, 16, args.image // 8, 32),
        "prompt_emb": torch.randn(1, args.text, 64),
        "pooled_prompt_emb": torch.randn(1, 64),
        "timestep": torch.tensor([617.25]),
        "guidance": torch.tensor([3.5]),
        "text_ids": torch.zeros(1, args.text, 3),
    }
    sys.stdout.write("| method | LoRAs added up, s | reference, s | ours, s | ours / added up | vs reference |\n")
    sys.stdout.write("|---|---:|---:|---:|---:|---:|\n")
    for number in args.loras:
        sides = fusion_sides(args, values, number)
        sys.stdout.write(measure(f"LoRA-Fusion, {number} LoRA{'s' * (number > 1)}", sides, args.repeats))
        sys.stdout.flush()
    sys.stdout.write(measure("timestep LoRA", timestep_sides(args, values), args.repeats))


if __name__ == "__main__":
    main()
