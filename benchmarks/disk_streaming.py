"""A forward of a transformer of the released size that is read from disk: ours, and the reference's disk mode.

Random bfloat16 weights are written to a folder and removed in the end; each side runs in a process of its own. Before
every measurement the files are dropped from the page cache, so that they come from the disk.

Run from the repository's root, with the reference package installed for `--sides reference`:

    python -m benchmarks.disk_streaming --folder /tmp/streamed --image-size 256 --text-tokens 128
"""

import argparse
import json
import os
import shutil
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


SIDES = ("ours", "reference")
GIB = 2**30


def drop_cache(folder: Path) -> None:
    """Have the next read of every file in `folder` come from the disk."""
    os.sync()
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_plainly(folder: Path) -> dict[str, float]:
    """Seconds and bytes of reading all files from beginning to end into one buffer."""
    drop_cache(folder)
    buffer = memoryview(bytearray(64 * 2**20))
    count, start = 0, time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                count += got
    return {"seconds": time.perf_counter() - start, "bytes": count}


def transformer_config(args: argparse.Namespace) -> dict[str, Any]:
    """FLUX.1-dev's config at the asked width and depth."""
    return {
        "num_layers": args.double,
        "num_single_layers": args.single,
        "num_attention_heads": args.width // 128,
        "guidance_embeds": True,
    }


def make_inputs(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Latents and texts, in the data type of computing."""
    generator = torch.Generator().manual_seed(1)
    side = args.image_size // 8

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(getattr(torch, args.dtype))

    return {"latents": normal(1, 16, side, side), "text": normal(1, args.text_tokens, 4096), "pooled": normal(1, 768)}


def write_files(args: argparse.Namespace, side: str, folder: Path) -> int:
    """Write the transformer in the layout of a side; returns the number of bytes."""
    if side == "ours":
        with torch.device("meta"):
            model: Any = FluxTransformer2DModel(**transformer_config(args))
        model.save_config(folder)
        name = "diffusion_pytorch_model"
    else:
        from tests.parity.reference.dit import empty_reference_dit

        model, name = empty_reference_dit(**transformer_config(args)), "model"
    return write_random_weights({key: tuple(t.shape) for key, t in model.state_dict().items()}, folder, name)


def prepare_ours(args: argparse.Namespace, folder: Path) -> tuple[Callable[[], torch.Tensor], Callable[[], Any]]:
    """A forward of ours, and its statistics."""
    from diffusers import FluxPipeline

    model = load_streamed(
        FluxTransformer2DModel,
        folder,
        compute_dtype=getattr(torch, args.dtype),
        ram_budget_gib=args.ram_budget_gib,
        read_ahead=args.read_ahead,
    )
    inputs = make_inputs(args)
    side = args.image_size // 8
    packed = FluxPipeline._pack_latents(inputs["latents"], 1, 16, side, side)
    ids = FluxPipeline._prepare_latent_image_ids(1, side // 2, side // 2, torch.device("cpu"), torch.float32)
    arguments = {
        "hidden_states": packed,
        "encoder_hidden_states": inputs["text"],
        "pooled_projections": inputs["pooled"],
        "timestep": torch.tensor([0.5]).to(packed),
        "guidance": torch.tensor([3.5]).to(packed),
        "img_ids": ids,
        "txt_ids": torch.zeros(args.text_tokens, 3),
        "return_dict": False,
    }
    return lambda: model(**arguments)[0], lambda: vars(disk_streaming_stats(model))


def prepare_reference(args: argparse.Namespace, folder: Path) -> tuple[Callable[[], torch.Tensor], Callable[[], Any]]:
    """A forward of the reference with all of its stages on disk."""
    from tests.parity.reference.dit import disk_reference_dit, reference_velocity

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
    prepare = prepare_ours if args.run == "ours" else prepare_reference
    forward, stats = prepare(args, folder)
    calls = []
    for _ in range(args.forwards):
        drop_cache(folder)
        before, start = stats(), time.perf_counter()
        before, cpu = dict(before), time.process_time()
        with torch.no_grad():
            output = forward()
        seconds = time.perf_counter() - start
        after = stats()
        calls.append({"seconds": seconds, "cpu": time.process_time() - cpu, "finite": bool(output.isfinite().all()),
                      "peak_gib": peak_mib() / 1024, **{key: after[key] - before[key] for key in after}})  # fmt: skip
    return {"side": args.run, "calls": calls}


def measure(args: argparse.Namespace, side: str, folder: Path) -> dict[str, Any]:
    """Run one side in a process of its own, between two plain reads of its files."""
    plain = [read_plainly(folder)]
    command = [
        sys.executable,
        "-m",
        "benchmarks.disk_streaming",
        *sys.argv[1:],
        "--run",
        side,
        "--folder",
        str(folder),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    plain.append(read_plainly(folder))
    return {**json.loads(done.stdout.splitlines()[-1]), "plain": plain}


def print_rows(result: dict[str, Any]) -> None:
    """Table rows of one side, one a call."""
    plain = max(read["bytes"] / read["seconds"] for read in result["plain"]) / 1e6
    for call in result["calls"]:
        read = call.get("bytes_read", 0)
        speed = read / call["read_seconds"] / 1e6 if read else None
        cells = [
            result["side"],
            f"{call['seconds']:.1f}",
            f"{call['seconds'] - call['wait_seconds']:.1f}" if read else "",
            f"{call['wait_seconds']:.1f}" if read else "",
            f"{read / 1e9:.2f}" if read else "",
            f"{speed:.0f}" if speed else "",
            " / ".join(f"{r['bytes'] / r['seconds'] / 1e6:.0f}" for r in result["plain"]),
            f"{result['plain'][0]['bytes'] / call['seconds'] / 1e6 / plain:.2f}",
            f"{call['peak_gib']:.2f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


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
        print(json.dumps(run_side(args)))
        return
    print("| side | s | s computing | s waiting | GB read | MB/s reading | MB/s plain | of plain | peak, GiB |")
    print("|---|" + "---:|" * 8)
    for side in args.sides:
        folder = Path(args.folder) / side
        if not (args.keep and folder.exists()):
            write_files(args, side, folder)
        try:
            print_rows(measure(args, side, folder))
        finally:
            if not args.keep:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
