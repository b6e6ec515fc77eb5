"""Draw the images of the documentation into `docs/images`, on a CPU in about a minute.

    python -m benchmarks.images
    python -m benchmarks.images eligen lora

They show what the embedded tiny model and the modules beside it do, with the same noise within a row. `flux-ext demo`
and `flux-ext demo --all` draw `demo.png` and `demo_all.png`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.images import conditions, weights
from benchmarks.images.sheet import make_sheet


FOLDER = Path(__file__).parents[2] / "docs" / "images"
COLORS = 128
SHEETS: dict[str, Callable[[], conditions.Rows]] = {
    "attach": weights.attach,
    "attribute_control": conditions.attribute_control,
    "caches": weights.caches,
    "composition": conditions.composition,
    "controlnet": conditions.controlnet,
    "eligen": conditions.eligen,
    "inpainting": conditions.inpainting,
    "insert_anything": conditions.insert_anything,
    "lora": weights.lora,
}


def save(image: Image.Image, path: Path) -> None:
    """Save a small file: colours of a palette, without dithering."""
    image.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="sheets; all by default", metavar="SHEET")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SHEETS):
        parser.error(f"got {sorted(unknown)}; the sheets are {', '.join(SHEETS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or SHEETS:
        path = arguments.out / f"{name}.png"
        save(make_sheet(SHEETS[name]()), path)
        sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
