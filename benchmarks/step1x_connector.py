"""Step1X-Edit's connector over the steps of a loop, beside the reference's with the same weights.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.step1x_connector --width 1024 --steps 8
"""

import argparse
import statistics
import sys
import time

import torch

from benchmarks.support.reference.step1x import reference_connector
from diffusers_flux_ext import Step1XConnector


TOKENS, USED = 640, 400


def main() -> None:
    """Print the table: medians of interleaved loops, in seconds of processor time per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[512, 1024], help="of the refined tokens")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(1)
    rows = ["| width | steps | reference, s | ours, s | vs reference |", "|---|---|---|---|---|"]
    for width in args.width:
        torch.manual_seed(0)
        sizes = {"in_channels": width * 7 // 8, "hidden_size": width, "num_attention_heads": width // 128}
        connector = Step1XConnector(**sizes).eval().requires_grad_(False)
        reference = reference_connector(connector)
        states, mask = torch.randn(1, TOKENS, sizes["in_channels"]), torch.arange(TOKENS)[None] < USED
        timesteps = torch.linspace(1, 1 / args.steps, args.steps)[:, None]

        def theirs() -> torch.Tensor:
            return [reference(states, t, mask.long())[0] for t in timesteps][-1]

        def ours() -> torch.Tensor:
            context = connector(states, mask)
            return [connector(context, timestep=t)[0] for t in timesteps][-1]

        torch.testing.assert_close(ours(), theirs(), atol=1e-3, rtol=0)
        times: dict[str, list[float]] = {"theirs": [], "ours": []}
        for _ in range(args.repeats):
            for name, call in (("theirs", theirs), ("ours", ours)):
                start = time.process_time()
                call()
                times[name].append((time.process_time() - start) / args.steps)
        first, second = (statistics.median(values) for values in times.values())
        rows.append(f"| {width} | {args.steps} | {first:.3f} | {second:.3f} | {first / second:.2f} |")
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
