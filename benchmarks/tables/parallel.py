"""What several devices exchange for one image of the released size, computed from shapes: a table of docs/parallel.md.

python -m benchmarks.tables.parallel --write docs/parallel.md
"""

import argparse
import sys
from pathlib import Path

from benchmarks.methods import write_between_markers


MARKERS = ("<!-- exchanged: begin -->\n", "<!-- exchanged: end -->")
HEADS, WIDTH, LAYERS, CHANNELS, BYTES = 24, 3072, 57, 64, 2
IMAGE, TEXT = 4096, 512
# What is drawn, with the numbers of its text and image tokens.
CALLS = {
    "plain": (TEXT, IMAGE),
    "EliGen, 6 entities": (7 * TEXT, IMAGE),
    "one reference (Kontext)": (TEXT, 2 * IMAGE),
}
DEGREES = (2, 4, 8)


def megabytes_of_attention(tokens: int, degree: int) -> float:
    """Return what one device sends in a forward pass for attention: queries, keys, values, and what comes back.

    Args:
        tokens (`int`): Tokens of the whole call.
        degree (`int`): Devices that share them.

    Returns:
        `float`: in units of 10^6 bytes.
    """
    own = tokens / degree
    return 4 * own * WIDTH * BYTES * LAYERS * (degree - 1) / degree / 1e6


def table() -> str:
    """Return the table."""
    lines = [
        "| call | devices | tokens of each | heads of each | attention, MB sent | velocity, MB sent | branches, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (text, image) in CALLS.items():
        tokens = text + image
        for degree in DEGREES:
            gathered = image / degree * CHANNELS * BYTES * (degree - 1) / 1e6
            branches = IMAGE * CHANNELS * BYTES / 1e6
            lines.append(
                f"| {name} | {degree} | {tokens // degree} | {HEADS // degree} | "
                f"{megabytes_of_attention(tokens, degree):.0f} | {gathered:.2f} | {branches:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the page")
    args = parser.parse_args()
    if args.write is None:
        sys.stdout.write(f"{table()}\n")
        return
    write_between_markers(args.write, f"{table()}\n", MARKERS)


if __name__ == "__main__":
    main()
