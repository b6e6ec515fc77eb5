"""LoRA-Encoder: reading one LoRA beside the reference's encoder, with the same weights.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.lora_encoder --width 1024 --double 4 --single 8
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.support.reference.lora_encoder import reference_lora_encoder
from diffusers_flux_ext import FluxLoRAEncoder


def sides(args: argparse.Namespace, rank: int) -> tuple[dict[str, Callable[[], Any]], int]:
    """Return both encoders on one LoRA, and the number of tokens inside."""
    torch.manual_seed(0)
    sizes = {"num_layers": args.double, "num_single_layers": args.single, "inner_dim": args.width}
    width = {"embed_dim": args.width, "intermediate_size": 2 * args.width, "num_attention_heads": args.width // 128}
    encoder = FluxLoRAEncoder(**sizes, **width).eval().requires_grad_(False)
    reference = reference_lora_encoder(encoder)
    pairs = {
        name: (torch.randn(rank, inputs), torch.randn(outputs, rank))
        for name, (inputs, outputs) in encoder.layer_shapes.items()
    }
    flat = {f"{name}.lora_{'AB'[index]}.weight": pair[index] for name, pair in pairs.items() for index in (0, 1)}
    torch.testing.assert_close(encoder(pairs), reference(flat), atol=1e-3, rtol=0)
    tokens = len(pairs) * encoder.config.num_embeds_per_layer + encoder.config.num_special_embeds
    return {"reference": lambda: reference(flat), "ours": lambda: encoder(pairs)}, tokens


def main() -> None:
    """Print the table: medians of interleaved calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024, help="of the transformer and of the tokens")
    parser.add_argument("--double", type=int, default=4)
    parser.add_argument("--single", type=int, default=8)
    parser.add_argument("--rank", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(1)
    rows = ["| tokens inside | rank | reference, s | ours, s | vs reference |", "|---|---|---|---|---|"]
    for rank in args.rank:
        calls, tokens = sides(args, rank)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(args.repeats):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        theirs, ours = (statistics.median(times[name]) for name in ("reference", "ours"))
        rows.append(f"| {tokens} | {rank} | {theirs:.3f} | {ours:.3f} | {theirs / ours:.2f} |")
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
