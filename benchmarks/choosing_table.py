"""Which method for which purpose, and what it costs: the table of docs/choosing.md.

Weights, tokens and budgets are computed from the released sizes without loading weights; the time of a step is what
`benchmarks/README.md` has:

    python -m benchmarks.choosing_table --write docs/choosing.md
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.methods import write_between_markers
from benchmarks.vram_table import smallest
from diffusers_flux_ext.methods.catalog import on_meta, plan_methods
from diffusers_flux_ext.methods.releases import released_modules, releases


MEASURED = Path(__file__).parent / "README.md"
MARKERS = ("<!-- choosing: begin -->\n", "<!-- choosing: end -->")
GIB = 2**30


@dataclass(frozen=True)
class Choice:
    """A row of the table.

    Attributes:
        purpose (`str`): What a user wants.
        page (`str`): The page of the method, without its suffix.
        name (`str`): Name of the method there.
        needs (`str`): What has to be downloaded beside FLUX.1-dev or in place of its transformer.
        planned (`str`, *optional*): Its name among the releases, for tokens, weights and the smallest budget.
        measured (`str`, *optional*): The first cell of its row in the benchmarks, for the time of a step.
    """

    purpose: str
    page: str
    name: str
    needs: str
    planned: str | None = None
    measured: str | None = None


CHOICES = (
    Choice("a prompt for each region", "eligen", "EliGen", "a LoRA", "eligen", "entities"),
    Choice("redraw a region with any model", "inpainting", "`InpaintRegion`", "nothing", "inpaint", "inpaint"),
    Choice("redraw or extend an image well", "fill", "Fill", "FLUX.1-Fill-dev, its own transformer", "fill", "fill"),
    Choice("redraw and control by one model", "flex", "Flex.2", "Flex.2-preview, its own transformer", "flex", "flex"),
    Choice("follow edges, depth or a pose", "controlnet", "ControlNet", "Union-Pro", "controlnet", "controlnet"),
    Choice("redraw by a ControlNet", "controlnet", "ControlNet", "Inpainting-Beta", "controlnet-inpaint"),
    Choice(
        "draw a given person", "infinite_you", "InfiniteYou", "InfuseNet, projector, face models", "infinite-you",
        "identity",
    ),
    Choice("style or content of an image", "ip_adapter", "IP-Adapter", "InstantX, SigLIP", "ip-adapter", "ip-adapter"),
    Choice(
        "the same with less memory", "ip_adapter", "IP-Adapter", "XLabs, CLIP", "ip-adapter-xlabs", "ip-adapter xlabs"
    ),
    Choice("variations and mixes of images", "redux", "Redux", "FLUX.1-Redux-dev", "redux", "redux"),
    Choice("edit an image, or use several", "references", "Kontext", "FLUX.1-Kontext-dev", "kontext", "references"),
    Choice(
        "put an object into another image", "insert_anything", "Insert-Anything", "Fill, Redux, a LoRA",
        "insert-anything", "insert-anything",
    ),
    Choice(
        "edit by instructions", "step1x_edit", "Step1X-Edit", "its own transformer, connector, Qwen2.5-VL",
        "step1x-edit", "step1x",
    ),
    Choice(
        "draw what a language model plans", "nexus_gen", "Nexus-Gen", "its own transformer, adapter, Qwen2.5-VL",
        "nexus-gen", "nexus-gen",
    ),
    Choice(
        "edit and describe by the same", "nexus_gen", "Nexus-Gen", "its own transformer, merger, Qwen2.5-VL",
        "nexus-gen-edit", "nexus-gen, edit",
    ),
    Choice(
        "attributes such as brightness by numbers", "attribute_control", "AttriCtrl", "an encoder for each attribute",
        "attribute-control", "attributes",
    ),
    Choice(
        "a LoRA's trigger without its words", "lora_encoder", "LoRA-Encoder", "the encoder, your LoRA",
        "lora-encoder", "lora embedding",
    ),
    Choice("several LoRAs at once", "lora_fusion", "LoRA-Fusion", "gates, your LoRAs", None, "LoRA-Fusion, 2 LoRAs"),
    Choice("a LoRA that depends on the step", "timestep_lora", "timestep LoRA", "the LoRA", None, "timestep LoRA"),
    Choice(
        "models tuned with attention masks", "padding_mask", "`mask_padding`", "nothing", "mask-padding",
        "padding mask",
    ),
    Choice("fewer steps of the transformer", "caches", "TeaCache", "nothing", None, "TeaCache 0.25"),
)  # fmt: skip


def measured_ratios() -> dict[str, str]:
    """Return the time of a step, with over without, by the first cell of the rows of the benchmarks."""
    ratios = {}
    for line in MEASURED.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"\*\*\d\.\d\d\*\*", cells[-1]):
            ratios[cells[0]] = cells[-1].strip("*")
        elif cells[0].startswith(("LoRA-Fusion", "timestep LoRA")) and len(cells) == 6:
            ratios[cells[0]] = cells[4]
        elif cells[0].startswith("TeaCache") and len(cells) == 4:
            ratios[cells[0]] = f"{1 / float(cells[3]):.2f}"
    return ratios


def added_tokens(name: str) -> int:
    """Return the tokens that a method adds to the joint sequence at 1024 x 1024, text and references."""
    sequences = (plan_methods(methods, budget_gib=100).to_dict() for methods in ([(name, None)], []))
    with_it, without = (facts["text_tokens"] + facts["image_tokens"] for facts in sequences)
    return with_it - without


def weights_gib(name: str) -> float:
    """Return the released modules beside FLUX.1's own in bfloat16."""
    modules = [on_meta(make) for make in released_modules(name).values()]
    return sum(weight.nbytes for module in modules for weight in module.parameters()) / GIB


def row(choice: Choice, ratios: dict[str, str]) -> str:
    """Return the line of a choice."""
    cells = [choice.purpose, f"[{choice.name}]({choice.page}.md)", choice.needs]
    if choice.planned is None:
        cells += ["-", "0"]
    else:
        counted = releases()[choice.planned].counted
        tokens = added_tokens(choice.planned)
        weights = weights_gib(choice.planned)
        cells += [f"{weights:.2f}" if weights else "-", f"{tokens} ({counted})" if tokens and counted else f"{tokens}"]
    cells.append(ratios[choice.measured] if choice.measured else "-")
    cells.append(f"{smallest(choice.planned):.2f}" if choice.planned else "-")
    return "| " + " | ".join(cells) + " |\n"


def table() -> Iterator[str]:
    """Return the lines of the table."""
    head = ["purpose", "method", "needs", "weights, GiB", "tokens added", "time of a step", "smallest budget, GiB"]
    yield "| " + " | ".join(head) + " |\n|" + "---|" * len(head) + "\n"
    ratios = measured_ratios()
    for choice in CHOICES:
        yield row(choice, ratios)


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the table into this page, between its markers")
    args = parser.parse_args()
    text = "".join(table())
    if args.write:
        write_between_markers(args.write, text, MARKERS)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
