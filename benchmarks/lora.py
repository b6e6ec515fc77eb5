"""Converting LoRA files of the released size: ours, diffusers' and the reference's converters, and a plain copy.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.lora --rank 16 128

Needs 16 GB of free disk space at rank 128.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.memory import peak_mib, reset_peak
from benchmarks.support.lora_files.cases import in_blocks
from benchmarks.support.lora_files.formats import TABLE
from benchmarks.support.lora_files.layouts import LAYOUTS
from benchmarks.support.lora_files.sizes import Sizes


Tensors = dict[str, Tensor]
Convert = Callable[[Path, Path], None]

RELEASED = Sizes(width=3072, double=19, single=38, context=4096, pooled=768)
WRITTEN = {"diffusers": "diffusers_peft", "kohya": "kohya", "bfl": "bfl_alpha", "diffsynth": "diffsynth_nodefault"}
PEERS = {
    ("kohya", "diffusers"): ("diffusers",),
    ("bfl", "diffusers"): ("diffusers",),
    ("kohya", "diffsynth"): ("reference",),
    ("diffusers", "diffsynth"): ("reference",),
    ("diffsynth", "kohya"): ("reference",),
}
MIB = 1024 * 1024


def write_source(name: str, rank: int, path: Path) -> None:
    """Write a file with random factors of every Linear of all blocks, in bfloat16, alpha equal to the rank."""
    row, tensors = TABLE[WRITTEN[name]], {}
    for unit in LAYOUTS[row.layout](RELEASED):
        if not all(in_blocks(module) for module, _ in unit.modules):
            continue
        for suffix, shape in ((row.spelling.down, (rank, unit.columns)), (row.spelling.up, (unit.rows, rank))):
            tensors[row.spelling.key(unit.name, suffix)] = torch.empty(shape, dtype=torch.bfloat16).normal_()
        if row.alpha == "stored":
            tensors[row.spelling.key(unit.name, "alpha")] = torch.tensor(float(rank))
    save_file(tensors, path)


def save_unshared(tensors: Tensors, path: Path) -> None:
    """Save converted tensors; those that share memory are cloned first, as safetensors requires."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen or not tensor.is_contiguous():
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.data_ptr())
    save_file(tensors, path)


def plain_copy() -> Convert:
    """Read every tensor and write it again."""
    return lambda source, target: save_file(load_file(source), target)


def ours(target_format: str) -> Convert:
    """Convert a file to another with this package."""
    from diffusers_flux_ext import convert_lora_file

    return lambda source, target: convert_lora_file(source, target, to=target_format)


def from_diffusers(source_format: str) -> Convert:
    """Return diffusers' converter of kohya's names, which also reads dotted ones with kohya's factor names."""
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    def convert(source: Path, target: Path) -> None:
        tensors = load_file(source)
        if source_format == "bfl":
            renamed = (("lora_A", "lora_down"), ("lora_B", "lora_up"))
            for old, new in renamed:
                tensors = {key.replace(old, new): value for key, value in tensors.items()}
        save_unshared(_convert_kohya_flux_lora_to_diffusers(tensors), target)

    return convert


def from_reference(source_format: str, target_format: str) -> Convert:
    """Return the reference's converters to and from its own names."""
    from benchmarks.support.reference.boot import import_reference

    flux = import_reference("diffsynth.utils.lora.flux")
    if source_format == "diffsynth":
        change = flux.FluxLoRAConverter.align_to_opensource_format
    else:
        change = flux.FluxLoRALoader(torch_dtype=torch.bfloat16).convert_state_dict

    def convert(source: Path, target: Path) -> None:
        converted = change(load_file(source))
        save_unshared(
            {key: value for key, value in converted.items() if "lora_unet" not in key}
            if target_format == "diffsynth"
            else converted,
            target,
        )

    return convert


def make_converter(tool: str, source_format: str, target_format: str) -> Convert:
    """Return the converter of a tool between two formats."""
    if tool == "copy":
        return plain_copy()
    if tool == "ours":
        return ours(target_format)
    return from_diffusers(source_format) if tool == "diffusers" else from_reference(source_format, target_format)


def measure_one(args: argparse.Namespace) -> None:
    """Convert once in this process, and print seconds and peak memory in MiB above the level after imports."""
    tool, source_format, target_format, source, target = args.one
    torch.set_num_threads(1)
    convert = make_converter(tool, source_format, target_format)
    reset_peak()
    before = peak_mib()
    start = time.perf_counter()
    convert(Path(source), Path(target))
    sys.stdout.write(f"{time.perf_counter() - start} {peak_mib() - before}\n")


def measure_apart(tool: str, pair: tuple[str, str], source: Path, target: Path) -> tuple[float, float]:
    """Return seconds and MiB of one conversion in a process of its own; the result is left in `target`."""
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.lora", "--one", tool, *pair, str(source), str(target)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, mib = result.stdout.strip().splitlines()[-1].split()
    return float(seconds), float(mib)


def measure_pair(pair: tuple[str, str], folder: Path, repeats: int) -> dict[str, tuple[float, float]]:
    """Return medians of every tool for a pair of formats, interleaved; "copy" is of the larger one of both files."""
    source, target, copied = folder / f"{pair[0]}.safetensors", folder / "target", folder / "copied"
    larger = folder / "larger"
    measure_apart("ours", pair, source, larger)
    if larger.stat().st_size < source.stat().st_size:
        shutil.copyfile(source, larger)
    tools = ("copy", "ours", *PEERS.get(pair, ()))
    found: dict[str, list[tuple[float, float]]] = {tool: [] for tool in tools}
    for repeat in range(repeats):
        for tool in tools if repeat % 2 else tools[::-1]:
            of_copy = tool == "copy"
            found[tool].append(measure_apart(tool, pair, larger if of_copy else source, copied if of_copy else target))
    for path in (target, copied):
        path.unlink()
    medians = {tool: tuple(map(statistics.median, zip(*values))) for tool, values in found.items()}
    sizes = source.stat().st_size / MIB, larger.stat().st_size / MIB
    larger.unlink()
    return {**medians, "sizes": sizes}


def table_row(rank: int, pair: tuple[str, str], found: dict[str, tuple[float, float]]) -> str:
    """Return one line: seconds and ratios, then memory and its ratio to the larger file."""
    seconds = {tool: f"{values[0]:.2f}" for tool, values in found.items()}
    memory = {tool: f"{values[1]:.0f}" for tool, values in found.items()}
    source, larger = found["sizes"]
    cells = [str(rank), f"{pair[0]} to {pair[1]}", f"{source:.0f}", f"{larger:.0f}"]
    cells += [seconds.get(tool, "") for tool in ("copy", "diffusers", "reference", "ours")]
    cells.append(f"{found['ours'][0] / found['copy'][0]:.2f}")
    cells += [memory.get(tool, "") for tool in ("copy", "diffusers", "reference", "ours")]
    cells.append(f"{found['ours'][1] / larger:.2f}")
    return "| " + " | ".join(cells) + " |\n"


def rows(args: argparse.Namespace) -> Iterator[str]:
    """Return the lines of the table."""
    times = ", s | ".join(("copy", "diffusers", "reference", "ours"))
    yield f"| rank | from, to | file, MiB | larger, MiB | {times}, s | ours / copy "
    yield f"| {times.replace(', s', ', MiB')}, MiB | ours / larger |\n|" + "---:|" * 14 + "\n"
    for rank in args.rank:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            for source in args.formats:
                write_source(source, rank, folder / f"{source}.safetensors")
                for target in args.formats:
                    if target != source:
                        pair = (source, target)
                        yield table_row(rank, pair, measure_pair(pair, folder, args.repeats))
                (folder / f"{source}.safetensors").unlink()


def check_space(args: argparse.Namespace) -> None:
    """Stop before the first file when the disk is too small."""
    needed = 120 * MIB * max(args.rank)
    free = shutil.disk_usage(args.folder or tempfile.gettempdir()).free
    if free < needed:
        raise SystemExit(f"rank {max(args.rank)} needs {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free")


def parse_args() -> argparse.Namespace:
    """Return ranks, formats and repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--formats", nargs="+", choices=WRITTEN, default=list(WRITTEN))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are written; the system's temporary folder")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    args = parse_args()
    if args.one:
        measure_one(args)
        return
    check_space(args)
    for line in rows(args):
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
