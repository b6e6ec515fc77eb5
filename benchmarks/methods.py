"""One transformer step with and without each method: time, tokens and weights. A new method is one entry of `METHODS`.

Run from the repository's root (`--write` puts the table between its markers in a page):

    python -m benchmarks.methods --write benchmarks/README.md
    python -m benchmarks.methods --method references fill --repeats 9
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxControlNetModel, ReduxImageEncoder
from diffusers.utils import logging
from torch import nn

from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from benchmarks.support.tiny.controlnet import tiny_controlnet
from benchmarks.support.tiny.infinite_you import face, tiny_projector
from benchmarks.support.tiny.ip_adapter import EMBED_DIM, XLABS, image_embeds, picture, tiny_ip_adapter
from benchmarks.support.tiny.lora_encoder import tiny_lora, tiny_lora_encoder
from benchmarks.support.tiny.nexus_gen import tiny_adapter, tiny_merger
from benchmarks.support.tiny.qwen_vl import HIDDEN
from benchmarks.support.tiny.redux import patch_embeds, tiny_redux_embedder
from benchmarks.support.tiny.step1x import edited, instruction_embeds, tiny_connector
from diffusers_flux_ext import (
    AttributeValueEncoder,
    AttributeValues,
    Canvas,
    ControlNetImage,
    DenoisingStep,
    EntityRegions,
    FillMask,
    FlexControl,
    FluxCondition,
    FluxConditionedPipeline,
    FluxIPAdapter,
    FluxLoRAEncoder,
    InfiniteYouIdentity,
    InfiniteYouImageProjector,
    InpaintRegion,
    IPAdapterImages,
    LoRAEmbedding,
    NexusGenAdapter,
    NexusGenEditingMerger,
    NexusGenEmbedding,
    PlanCache,
    PromptEmbeds,
    ReduxImages,
    ReferenceImages,
    Step1XConnector,
    Step1XInstruction,
    predict_velocity,
    regional_attention,
)
from diffusers_flux_ext.encoded import EncodedConditions
from diffusers_flux_ext.testing import seeded, tiny_pipeline, tiny_transformer


# A quarter of the released numbers of tokens and heads of the released size: the shares of a step stay the same.
SIDE, TEXT_TOKENS, VALUE_TOKENS, IMAGE_PROMPT_TOKENS, IDENTITY_TOKENS, PROMPT = 32, 128, 8, 32, 2, 12
HEADS: dict[str, Any] = {"attention_head_dim": 128, "num_attention_heads": 4}
WIDE: dict[str, Any] = {**HEADS, "axes_dims_rope": (16, 56, 56)}
DEPTH: dict[str, Any] = {"num_layers": 1, "num_single_layers": 2}
BOXES = [(0.0, 0.0, 0.31, 0.45), (0.33, 0.0, 0.64, 0.45), (0.66, 0.5, 0.97, 0.95)]
LEFT = (0.0, 0.0, 0.5, 1.0)
# Patches of Redux' image, tokens of Step1X-Edit's instruction and of Nexus-Gen's image; an edit's are squares.
PATCHES, INSTRUCTION_TOKENS, DRAWN_TOKENS, DRAWN_SIDE, GIVEN_SIDE = 182, 160, 20, 5, 9
MARKERS = ("<!-- methods: begin -->\n", "<!-- methods: end -->")


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        setup (`str`): What runs, in words.
        build (`Callable`): Makes the conditions, for the transformer of this benchmark.
        released (`Callable`): Makes the modules that stay in memory during the loop, in the released sizes.
        channels (`int`): Channels that the conditions add.
        hides_padding (`bool`): Whether the prompt's padding is hidden, too.
    """

    setup: str
    build: Callable[[], list[FluxCondition]]
    released: Callable[[], list[nn.Module]] = list
    channels: int = 0
    hides_padding: bool = False


def _entities(**options: Any) -> list[FluxCondition]:
    return [EntityRegions(["a red dog", "a tree", "a blue bird"], BOXES, **options)]


def _image_prompt(depth: int, **sizes: Any) -> list[FluxCondition]:
    adapter = tiny_ip_adapter(1, **{**sizes, **HEADS, "num_blocks": depth})
    return [IPAdapterImages(adapter, image_embeds=image_embeds())]


def _xlabs() -> nn.Module:
    sizes = {**XLABS, **HEADS, "num_blocks": 19, "num_attention_heads": 24}
    return FluxIPAdapter(**{**sizes, "cross_attention_dim": 4096, "image_embed_dim": 768})


def _redux(**options: Any) -> list[FluxCondition]:
    embeds = patch_embeds(0, 1, PATCHES, EMBED_DIM)
    return [ReduxImages(image_embeds=embeds, image_embedder=tiny_redux_embedder(), **options)]


def _step1x() -> list[FluxCondition]:
    embeds = instruction_embeds(length=INSTRUCTION_TOKENS)
    return [Step1XInstruction(tiny_connector(), edited(), instruction_embeds=embeds)]


def _nexus_gen() -> list[FluxCondition]:
    embeds = torch.randn(1, DRAWN_TOKENS, HIDDEN, generator=seeded())
    return [NexusGenEmbedding(tiny_adapter(), image_embeds={"image_embeds": embeds})]


def _nexus_gen_edit() -> list[FluxCondition]:
    drawn, given = (torch.randn(1, side * side, HIDDEN, generator=seeded()) for side in (DRAWN_SIDE, GIVEN_SIDE))
    grid = torch.tensor((2 * GIVEN_SIDE, 2 * GIVEN_SIDE))
    embeds = {"image_embeds": drawn, "reference_embeds": given, "reference_grid": grid}
    return [NexusGenEmbedding(tiny_merger(), image_embeds=embeds)]


METHODS: dict[str, Method] = {
    "entities": Method("EliGen, 3 entities", _entities),
    "padding mask": Method(f"`mask_padding`, prompt of {PROMPT} tokens", list, hides_padding=True),
    "entities, padding mask": Method("both of them", lambda: _entities(mask_padding=True), hides_padding=True),
    "references": Method(
        "one reference of the image's size",
        lambda: [ReferenceImages(picture(0, (16 * SIDE, 16 * SIDE)), preferred_size=False)],
    ),
    "references, strength": Method(
        "the same, strength 0.5",
        lambda: [ReferenceImages(picture(0, (16 * SIDE, 16 * SIDE)), scale=0.5, preferred_size=False)],
    ),
    "controlnet": Method(
        "ControlNet of 1 + 0 blocks; released: Union-Pro",
        lambda: [ControlNetImage(tiny_controlnet(5, num_single_layers=0, **WIDE), picture())],
        lambda: [FluxControlNetModel(num_layers=5, num_single_layers=10, num_mode=10, guidance_embeds=True)],
    ),
    "identity": Method(
        "InfiniteYou, InfuseNet of 1 + 0 blocks",
        lambda: [
            InfiniteYouIdentity(
                tiny_controlnet(7, num_single_layers=0, **WIDE),
                tiny_projector(num_queries=IDENTITY_TOKENS),
                id_embeds=face(),
            )
        ],
        lambda: [
            FluxControlNetModel(num_layers=4, num_single_layers=10, guidance_embeds=True),
            InfiniteYouImageProjector(),
        ],
    ),
    "ip-adapter": Method(
        "InstantX' IP-Adapter, one image",
        lambda: _image_prompt(3, num_tokens=IMAGE_PROMPT_TOKENS),
        lambda: [FluxIPAdapter()],
    ),
    "ip-adapter xlabs": Method("XLabs' IP-Adapter, one image", lambda: _image_prompt(1, **XLABS), lambda: [_xlabs()]),
    "attributes": Method(
        "AttriCtrl, one value",
        lambda: [AttributeValues(tiny_value_encoder(num_tokens=VALUE_TOKENS), {"brightness": 0.7})],
        lambda: [AttributeValueEncoder()],
    ),
    "lora embedding": Method(
        "LoRA-Encoder, one LoRA",
        lambda: [LoRAEmbedding(tiny_lora_encoder(num_special_embeds=1), tiny_lora(num_special_embeds=1))],
        lambda: [FluxLoRAEncoder()],
    ),
    "redux": Method("Redux, one image", _redux, lambda: [ReduxImageEncoder()]),
    "redux, half": Method("the same, strength 0.5", lambda: _redux(scale=0.5), lambda: [ReduxImageEncoder()]),
    "redux, masked": Method("the same, masked", lambda: _redux(region=LEFT), lambda: [ReduxImageEncoder()]),
    "insert-anything": Method(
        "Insert-Anything: Fill and Redux, without its LoRA",
        lambda: [FillMask(picture(), LEFT), *_redux()],
        lambda: [ReduxImageEncoder()],
        channels=320,
    ),
    "step1x": Method("Step1X-Edit, without CFG", _step1x, lambda: [Step1XConnector()]),
    "nexus-gen": Method("Nexus-Gen, drawing", _nexus_gen, lambda: [NexusGenAdapter()]),
    "nexus-gen, edit": Method("Nexus-Gen, editing", _nexus_gen_edit, lambda: [NexusGenEditingMerger()]),
    "fill": Method("FLUX.1 Fill", lambda: [FillMask(picture(), LEFT)], channels=320),
    "flex": Method("Flex.2, inpainting and control", lambda: [FlexControl(picture(), LEFT, picture(1))], channels=132),
    "inpaint": Method("`InpaintRegion`", lambda: [InpaintRegion(picture(), LEFT)]),
}


def make_step(
    conditions: Sequence[FluxCondition], channels: int, hides_padding: bool
) -> tuple[Callable[[], Any], int]:
    """Return a function that runs one step with the conditions, and the tokens that they add."""
    transformer = tiny_transformer(0, in_channels=64 + channels, out_channels=64, **DEPTH, **WIDE)
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=transformer)
    config, pixels = transformer.config, 16 * SIDE
    noise = torch.randn(1, SIDE * SIDE, 64, generator=seeded())
    canvas = Canvas(
        pixels, pixels, 1, 1, torch.device("cpu"), torch.float32, max_sequence_length=TEXT_TOKENS, noise=noise
    )
    encoded = EncodedConditions(pipe, conditions, canvas)
    prompt = PromptEmbeds(
        torch.randn(1, TEXT_TOKENS, config.joint_attention_dim, generator=seeded(1)),
        torch.randn(1, config.pooled_projection_dim, generator=seeded(2)),
        torch.zeros(TEXT_TOKENS, 3),
        torch.arange(TEXT_TOKENS)[None] < PROMPT if hides_padding else None,
    )
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(SIDE).float(), torch.arange(SIDE).float())
    at = (torch.tensor([0.9]), noise, ids, prompt, torch.tensor([3.5]), torch.tensor([0.8]))
    plain, cache = DenoisingStep(1, 4, "cond", *at), PlanCache()

    def run() -> torch.Tensor:
        with regional_attention(transformer):
            step = encoded.with_prompt(plain)
            velocity = predict_velocity(transformer, step, encoded.contributions(step), cache)
        return encoded.after_step(step, velocity)

    step = encoded.with_prompt(plain)
    added = sum(group.length for part in encoded.contributions(step) for group in (*part.text, *part.reference))
    return run, added + step.prompt.hidden_states.shape[1] - TEXT_TOKENS


def processor_seconds(run: Callable[[], Any]) -> float:
    """Return processor time of one call, which other work on the machine disturbs least."""
    start = time.process_time()
    run()
    return time.process_time() - start


def weights_gib(method: Method) -> float:
    """Return weights in bfloat16 of the modules in their released sizes, from shapes alone."""
    with torch.device("meta"):
        modules = method.released()
    return sum(weight.numel() for module in modules for weight in module.parameters()) * 2 / 2**30


def row(name: str, repeats: int, base: Callable[[], Any]) -> str:
    """Return the line of one method: medians of steps that take turns with steps without it."""
    method = METHODS[name]
    run, added = make_step(method.build(), method.channels, method.hides_padding)
    times: dict[str, list[float]] = {"base": [], "with": []}
    for repeat in range(repeats + 1):
        for side, call in (("base", base), ("with", run)):
            seconds = processor_seconds(call)
            if repeat:
                times[side].append(seconds)
    medians = {side: statistics.median(values) for side, values in times.items()}
    cells = [f"{medians['base']:.3f}", f"{medians['with']:.3f}", f"**{medians['with'] / medians['base']:.2f}**"]
    return f"| {name} | {method.setup} | {added} | {weights_gib(method):.2f} | {' | '.join(cells)} |\n"


def table(names: Sequence[str], repeats: int) -> Iterator[str]:
    """Return the lines of the table of the named methods."""
    head = ["method", "setup", "tokens added", "weights, GiB", "without, s", "with, s", "time ratio"]
    yield "| " + " | ".join(head) + " |\n|" + "---|" * len(head) + "\n"
    base, _ = make_step([], 0, False)
    for name in names:
        yield row(name, repeats, base)


def write_between_markers(page: Path, text: str, markers: tuple[str, str] = MARKERS) -> None:
    """Replace what stands between the markers of a page; raise a `ValueError` if it has none."""
    before, begin, rest = page.read_text().partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not end:
        raise ValueError(f"{page} has no markers {markers}, between which the table belongs.")
    temporary = page.with_suffix(".tmp")
    temporary.write_text(before + begin + text + end + after)
    temporary.rename(page)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=Path, help="write the table into this page, between its markers")
    args = parser.parse_args()
    if args.write and len(args.method) < len(METHODS):
        parser.error("--write is for the whole table: leave out --method")
    logging.set_verbosity(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = []
    with torch.no_grad():
        for line in table(args.method, args.repeats):
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
    if args.write:
        write_between_markers(args.write, "".join(lines))


if __name__ == "__main__":
    main()
