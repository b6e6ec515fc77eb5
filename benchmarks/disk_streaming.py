"""A forward of a transformer of the released size that is read from disk: ours, accelerate's and the reference's.

Random bfloat16 weights are written to a folder and removed at the end; each side runs in a process of its own. Before
every measurement the files are dropped from the page cache, so that they come from the disk.

Run from the repository's root, with the reference package installed for `--sides reference`:

    python -m benchmarks.disk_streaming --folder /tmp/streamed --image-size 256 --text-tokens 128
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from benchmarks.memory import peak_mib
from benchmarks.random_files import write_random_weights
from diffusers_flux_ext import disk_streaming_stats, load_streamed
from diffusers_flux_ext.checkpoints.stored import read_layout


SIDES = ("ours", "accelerate", "reference")
GIB = 2**30


def drop_cache(folder: Path) -> None:
    """Make the next read of every file in `folder` come from the disk."""
    os.sync()
    for path in folder.glob("*.*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_plainly(folder: Path) -> float:
    """Return MB/s of reading all files in full into one buffer, leaving nothing in the page cache."""
    drop_cache(folder)
    buffer = memoryview(bytearray(16 * 2**20))
    count, start = 0, time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                count += got
    seconds = time.perf_counter() - start
    drop_cache(folder)
    return count / seconds / 1e6


def transformer_config(args: argparse.Namespace) -> dict[str, Any]:
    """Return FLUX.1-dev's config at the given width and depth."""
    return {
        "num_layers": args.double,
        "num_single_layers": args.single,
        "num_attention_heads": args.width // 128,
        "guidance_embeds": True,
    }


def make_inputs(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Return latents and texts, in the data type of computing."""
    generator = torch.Generator().manual_seed(1)
    side = args.image_size // 8

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(getattr(torch, args.dtype))

    return {"latents": normal(1, 16, side, side), "text": normal(1, args.text_tokens, 4096), "pooled": normal(1, 768)}


def write_files(args: argparse.Namespace, side: str, folder: Path) -> int:
    """Write the transformer in the layout of a side; returns the number of bytes."""
    if side != "reference":
        with torch.device("meta"):
            model: Any = FluxTransformer2DModel(**transformer_config(args))
        model.save_config(folder)
        name = "diffusion_pytorch_model"
    else:
        from benchmarks.support.reference.dit import empty_reference_dit

        model, name = empty_reference_dit(**transformer_config(args)), "model"
    return write_random_weights({key: tuple(t.shape) for key, t in model.state_dict().items()}, folder, name)


def forward_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of diffusers' transformer."""
    from diffusers import FluxPipeline

    inputs = make_inputs(args)
    side = args.image_size // 8
    packed = FluxPipeline._pack_latents(inputs["latents"], 1, 16, side, side)
    ids = FluxPipeline._prepare_latent_image_ids(1, side // 2, side // 2, torch.device("cpu"), torch.float32)
    return {
        "hidden_states": packed,
        "encoder_hidden_states": inputs["text"],
        "pooled_projections": inputs["pooled"],
        "timestep": torch.tensor([0.5]).to(packed),
        "guidance": torch.tensor([3.5]).to(packed),
        "img_ids": ids,
        "txt_ids": torch.zeros(args.text_tokens, 3),
        "return_dict": False,
    }


def prepare_ours(args: argparse.Namespace, folder: Path) -> tuple[Callable[[], torch.Tensor], Callable[[], Any]]:
    """Return a forward of ours, and its statistics."""
    model = load_streamed(
        FluxTransformer2DModel,
        folder,
        compute_dtype=getattr(torch, args.dtype),
        ram_budget_gib=args.ram_budget_gib,
        read_ahead=args.read_ahead,
    )
    arguments = forward_arguments(args)
    return lambda: model(**arguments)[0], lambda: vars(disk_streaming_stats(model))


def prepare_accelerate(args: argparse.Namespace, folder: Path) -> tuple[Callable[[], torch.Tensor], Callable[[], Any]]:
    """Return a forward under accelerate's `disk_offload`, which reads the same safetensors files in place."""
    from accelerate import disk_offload

    with torch.device("meta"):
        model: Any = FluxTransformer2DModel(**transformer_config(args)).to(getattr(torch, args.dtype))
    index = {
        key: {
            "safetensors_file": str(each.path),
            "weight_name": key,
            "dtype": str(each.dtype).removeprefix("torch."),
            "shape": list(each.shape),
        }
        for key, each in read_layout(folder).items()
    }
    offload = folder / "accelerate"
    offload.mkdir(exist_ok=True)
    (offload / "index.json").write_text(json.dumps(index))
    disk_offload(model, str(offload), execution_device=torch.device("cpu"))
    arguments = forward_arguments(args)
    return lambda: model(**arguments)[0], dict


def prepare_reference(args: argparse.Namespace, folder: Path) -> tuple[Callable[[], torch.Tensor], Callable[[], Any]]:
    """Return a forward of the reference with all of its stages on disk."""
    from benchmarks.support.reference.dit import disk_reference_dit, reference_velocity

    dtype = getattr(torch, args.dtype)
    paths = [str(path) for path in sorted(folder.glob("*.safetensors"))]
    dit = disk_reference_dit(paths, dtype, **transformer_config(args))
    inputs = make_inputs(args)
    arguments = {
        "latents": inputs["latents"],
        "timestep": torch.tensor([500.0]).to(dtype),
        "prompt_emb": inputs["text"],
        "pooled_prompt_emb": inputs["pooled"],
        "guidance": torch.tensor([3.5]).to(dtype),
        "text_ids": torch.zeros(1, args.text_tokens, 3),
    }
    return lambda: reference_velocity(dit, **arguments), dict


def run_side(args: argparse.Namespace) -> dict[str, Any]:
    """Build one side and run its forwards; everything is measured in this process."""
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = Path(args.folder)
    drop_cache(folder)
    prepare = {"ours": prepare_ours, "accelerate": prepare_accelerate, "reference": prepare_reference}[args.run]
    forward, stats = prepare(args, folder)
    calls, plain = [], read_plainly(folder)
    for _ in range(args.forwards):
        before, cpu, start = dict(stats()), time.process_time(), time.perf_counter()
        with torch.no_grad():
            output = forward()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        counts = {key: value - before[key] for key, value in dict(stats()).items()}
        if not output.isfinite().all():
            raise ValueError(f"The output of {args.run} is not finite.")
        # The machine's speed drifts, so a call is compared with the plain reads before and after it.
        following = read_plainly(folder)
        calls.append({"seconds": seconds, "cpu": cpu, "plain": (plain + following) / 2, **counts})
        plain = following
    return {"side": args.run, "calls": calls, "peak_gib": peak_mib() / 1024}


def measure(side: str, folder: Path) -> dict[str, Any]:
    """Run one side in a process of its own."""
    module = [sys.executable, "-m", "benchmarks.disk_streaming"]
    command = [*module, *sys.argv[1:], "--run", side, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_rows(result: dict[str, Any], size: int) -> None:
    """Table rows of one side: the median of its calls."""
    calls = result["calls"]

    def rate(call: dict[str, Any]) -> float:
        # What was read ahead before the call began does not count.
        return call.get("bytes_read", size) / call["seconds"] / 1e6

    def median(value: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(value, calls))

    cells = [
        result["side"],
        f"{median(lambda call: call['seconds']):.1f}",
        f"{median(lambda call: call['cpu']):.1f}",
        f"{median(lambda call: call['wait_seconds']):.1f}" if "wait_seconds" in calls[0] else "",
        f"{median(lambda call: call['bytes_read']) / 1e9:.2f}" if "bytes_read" in calls[0] else "",
        f"{median(rate):.0f}",
        f"{median(lambda call: call['plain']):.0f}",
        f"{median(lambda call: rate(call) / call['plain']):.2f}",
        f"{result['peak_gib']:.2f}",
    ]
    sys.stdout.write("| " + " | ".join(cells) + " |\n")
    sys.stdout.flush()


def main() -> None:
    """Write the files, measure, and remove them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="a folder that does not exist yet, on the disk to measure")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours"])
    parser.add_argument("--double", type=int, default=19)
    parser.add_argument("--single", type=int, default=38)
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--text-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="float32", help="what is computed in; files are bfloat16")
    parser.add_argument("--ram-budget-gib", type=float)
    parser.add_argument("--read-ahead", type=int, default=1)
    parser.add_argument("--forwards", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="leave the files, and use them if they are there")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        sys.stdout.write(json.dumps(run_side(args)) + "\n")
        return
    sys.stdout.write(
        "| side | s | processor s | s waiting | GB read | MB/s | MB/s plain | of plain | peak, GiB |" + "\n"
    )
    sys.stdout.write("|---|" + "---:|" * 8 + "\n")
    for side in args.sides:
        folder = Path(args.folder) / side
        if not (args.keep and folder.exists()):
            write_files(args, side, folder)
        try:
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            print_rows(measure(side, folder), size)
        finally:
            if not args.keep:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
