"""The flags of `flux-ext generate`, and the field of a job that each one sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..parsing import parse_gib, parse_positive, parse_scale, parse_seed, parse_share, parse_size, parse_text_tokens
from . import values


@dataclass(frozen=True)
class Flag:
    """A flag and where its value goes.

    Attributes:
        name (`str`): The flag, such as `"--steps"`.
        field (`str`):
            The field of the job, such as `"call.num_inference_steps"`. `"conditions.TYPE.name"` is a field of a
            condition of this type, which is added if there is none. Several fields, with spaces between them, get the
            parts of a value.
        help (`str`): What it is for.
        parse (`Callable`): Reads its text.
        metavar (`str`, *optional*): What its value is called.
        many (`str`, *optional*):
            What several values are: `"list"` is a list in the field, `"each"` a condition each, in the order of the
            flags, `"one or more"` a list unless there is only one, `"named"` entries by name.
        is_path (`bool`): Whether it names a file, a folder or a repository.
        alias (`str`, *optional*): Another spelling.
        choices (`tuple[str, ...]`): All values, if they are few.
    """

    name: str
    field: str
    help: str
    parse: Callable[[str], Any] = str
    metavar: str | None = None
    many: Literal["list", "each", "one or more", "named"] | None = None
    is_path: bool = False
    alias: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def dest(self) -> str:
        """Its name in the namespace."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def fields(self) -> list[str]:
        """The fields that it sets."""
        return self.field.split()


IMAGE, REGION = "IMAGE", "BOX or MASK"
# Groups of `--help`, each with its flags.
FLAGS: dict[str, list[Flag]] = {
    "what is drawn": [
        Flag("--model", "model.path", "repository or folder in diffusers' layout, single file, or `tiny` (default)",
             metavar="PATH", is_path=True),
        Flag("--base", "model.base", "repository or folder of everything that a single file lacks", metavar="PATH",
             is_path=True),
        Flag("--pipeline", "pipeline", "class of the pipeline (default: FluxConditionedPipeline)"),
        Flag("--component", "components", "a module of the pipeline, such as `mllm=Qwen2.5-VL`; may be repeated",
             values.named(str, "PATH"), "NAME=PATH", "named", is_path=True),
        Flag("--prompt", "call.prompt", "the global prompt"),
        Flag("--negative-prompt", "call.negative_prompt", "what to steer away from, with --true-cfg (default: empty)"),
        Flag("--steps", "call.num_inference_steps", "denoising steps (default: 28; schnell: 4; tiny: 20)",
             parse_positive, "N"),
        Flag("--seed", "call.seed", "seed of the noise (default: 0), or one for each image", parse_seed, "SEED",
             "one or more"),
        Flag("--num-images", "call.num_images_per_prompt", "images (default: 1, or one for each seed)",
             parse_positive, "N"),
        Flag("--size", "call.width call.height", "pixels (default: 1024; tiny: 128)", parse_size,
             "N or WIDTHxHEIGHT"),
        Flag("--guidance", "call.guidance_scale", "distilled guidance scale (default: 3.5)", parse_scale, "SCALE"),
        Flag("--true-cfg", "call.true_cfg_scale", "true classifier-free guidance scale (default: off; tiny: 2)",
             parse_scale, "SCALE"),
        Flag("--text-tokens", "call.max_sequence_length",
             "text tokens of a prompt, at most 512 (schnell: 256; tiny: 32)", parse_text_tokens, "N"),
    ],
    "LoRA files": [
        Flag("--lora", "loras", "LoRA file, folder or repository, with a weight; may be repeated. `none` leaves "
             "tiny's own EliGen LoRA out", values.lora, "PATH[@WEIGHT]", "list", is_path=True),
        Flag("--lora-weight-name", "loras.weight_name", "the file of a --lora repository, where it holds several",
             metavar="FILE", many="each"),
    ],
    "images and regions": [
        Flag("--entity", "conditions.EntityRegions.prompts conditions.EntityRegions.masks",
             "an entity and its box, in pixels or in fractions of the image, or its mask; may be repeated",
             values.entity, "TEXT@BOX or TEXT@MASK", "list"),
        Flag("--image", "call.image", "the image to start from, to inpaint or to edit", metavar=IMAGE, is_path=True),
        Flag("--strength", "call.strength", "how much of --image is drawn anew, up to 1 (default: 0.6)", parse_share,
             "SHARE"),
        Flag("--inpaint-mask", "conditions.InpaintRegion.mask", "what of --image is drawn anew, with any model",
             values.region, REGION, is_path=True, alias="--mask"),
        Flag("--fill-mask", "conditions.FillMask.mask", "what of --image is drawn anew, with a Fill model",
             values.region, REGION, is_path=True),
        Flag("--reference", "conditions.ReferenceImages.images", "a reference (Kontext); may be repeated",
             metavar=IMAGE, many="list", is_path=True),
        Flag("--reference-scale", "conditions.ReferenceImages.scale", "how strongly references act (default: 1)",
             parse_scale, "SCALE"),
    ],
    "modules": [
        Flag("--control", "conditions.ControlNetImage.image", "a control image; may be repeated", metavar=IMAGE,
             many="each", is_path=True),
        Flag("--controlnet", "conditions.ControlNetImage.controlnet.path",
             "the ControlNet of each --control, or one for all (`tiny` for the tiny model)", metavar="PATH",
             many="each", is_path=True),
        Flag("--control-scale", "conditions.ControlNetImage.scale", "how strongly each acts, or all (default: 1)",
             parse_scale, "SCALE", "each"),
        Flag("--ip-adapter-image", "conditions.IPAdapterImages.images", "an image as a prompt; may be repeated",
             metavar=IMAGE, many="list", is_path=True),
        Flag("--ip-adapter", "conditions.IPAdapterImages.adapter.path", "the IP-Adapter", metavar="PATH",
             is_path=True),
        Flag("--ip-adapter-encoder", "conditions.IPAdapterImages.image_encoder.path", "its image encoder",
             metavar="PATH", is_path=True),
        Flag("--ip-adapter-scale", "conditions.IPAdapterImages.scale", "how strongly it acts (default: 1)",
             parse_scale, "SCALE"),
        Flag("--redux-image", "conditions.ReduxImages.images", "an image for FLUX.1 Redux; may be repeated",
             metavar=IMAGE, many="list", is_path=True),
        Flag("--redux", "conditions.ReduxImages.image_embedder.path", "Redux' embedder", metavar="PATH",
             is_path=True),
        Flag("--redux-encoder", "conditions.ReduxImages.image_encoder.path", "Redux' image encoder", metavar="PATH",
             is_path=True),
        Flag("--redux-scale", "conditions.ReduxImages.scale", "how strongly Redux acts (default: 1)", parse_scale,
             "SCALE"),
        Flag("--identity", "conditions.InfiniteYouIdentity.id_image", "an image of a person; may be repeated",
             metavar=IMAGE, many="each", is_path=True),
        Flag("--identity-net", "conditions.InfiniteYouIdentity.controlnet.path", "InfiniteYou's InfuseNet",
             metavar="PATH", many="each", is_path=True),
        Flag("--identity-projector", "conditions.InfiniteYouIdentity.image_projector.path",
             "InfiniteYou's image projector", metavar="PATH", many="each", is_path=True),
        Flag("--identity-region", "conditions.InfiniteYouIdentity.region", "where each person is", values.region,
             REGION, "each", is_path=True),
        Flag("--attribute", "conditions.AttributeValues.values", "a number from 0 to 1, such as brightness=0.3; may "
             "be repeated", values.named(parse_scale, "NUMBER"), "NAME=NUMBER", "named"),
        Flag("--attribute-encoder", "conditions.AttributeValues.encoder.path", "AttriCtrl's encoder", metavar="PATH",
             is_path=True),
    ],
    "memory": [
        Flag("--vram", "memory.vram_gib", "budget of the card in GiB", parse_gib, "GIB"),
        Flag("--offload", "memory.offload", "move unused parts to host memory (default: none)",
             choices=("none", "model", "sequential")),
        Flag("--cache", "memory.cache", "skip steps that change little: `tea`, or `tea=0.25` with its threshold",
             values.cache, "NAME[=THRESHOLD]"),
    ],
}  # fmt: skip


def all_flags() -> list[Flag]:
    """Return all flags of the table."""
    return [flag for flags in FLAGS.values() for flag in flags]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the table to a parser; flags that are not given are `None`.

    Args:
        parser (`argparse.ArgumentParser`): The parser.
    """
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            options: dict[str, Any] = {"help": flag.help, "type": flag.parse, "dest": flag.dest}
            if flag.choices:
                options["choices"] = flag.choices
            elif flag.metavar is not None:
                options["metavar"] = flag.metavar
            if flag.many == "one or more":
                options["nargs"] = "+"
            elif flag.many is not None:
                options["action"] = "append"
            group.add_argument(flag.name, *filter(None, [flag.alias]), **options)
