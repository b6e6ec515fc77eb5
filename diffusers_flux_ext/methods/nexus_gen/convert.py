"""Convert the published files of Nexus-Gen V2 into folders for `from_pretrained`.

    flux-ext convert nexus-gen Nexus-GenV2 nexus-gen

Every file that the source has is converted; the target gets

    generation/transformer, generation/generation_adapter    from generation_decoder.bin
    editing/transformer, editing/editing_adapter             from edit_decoder.bin
    mllm                                                     from config.json and model*.safetensors
    mllm_processor                                           from the folder processor, or from the source itself
"""

from pathlib import Path
from typing import Any

import torch

from ...checkpoints.converting import command_parser, reported
from ...checkpoints.writing import check_target, written_at_once
from ...inputs.qwen_vl import QwenVLProcessor
from .decoder import load_nexus_gen_decoder
from .language_model import NexusGenModel


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DECODERS = {"generation": "generation_decoder.bin", "editing": "edit_decoder.bin"}


def convert_decoder(source: Path, target: Path, dtype: torch.dtype | None, axes: list[int] | None) -> None:
    """Write the transformer and the adapter of one decoder."""
    overrides: dict[str, Any] = {} if axes is None else {"axes_dims_rope": tuple(axes)}
    transformer, adapter = load_nexus_gen_decoder(source, dtype=dtype, **overrides)
    transformer.save_pretrained(target / "transformer")
    adapter.save_pretrained(target / f"{target.name}_adapter")


def convert_language_model(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Write the language model and its processor."""
    processor = source / "processor" if (source / "processor").is_dir() else source
    QwenVLProcessor.from_pretrained(processor).save_pretrained(target / "mllm_processor")
    NexusGenModel.from_pretrained(source, dtype=dtype or "auto").save_pretrained(target / "mllm")


def convert(source: Path, target: Path, dtype: torch.dtype | None, axes: list[int] | None) -> None:
    """Write the target under a temporary name until it is complete."""
    check_target(target)
    decoders = {name: source / file for name, file in DECODERS.items() if (source / file).is_file()}
    has_language_model = (source / "config.json").is_file()
    if not decoders and not has_language_model:
        raise ValueError(
            f"{source} holds nothing of Nexus-Gen: expected {', '.join(DECODERS.values())}, or config.json with the "
            f"files of the language model."
        )
    with written_at_once(target, overwrite=False) as temporary:
        for name, file in decoders.items():
            convert_decoder(file, temporary / name, dtype, axes)
        if has_language_model:
            convert_language_model(source, temporary, dtype)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = command_parser("nexus-gen", __doc__)
    parser.add_argument("source", type=Path, help="the folder with the published files")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--dtype", choices=DTYPES, help="data type of the result (default: that of the files)")
    parser.add_argument("--axes-dims-rope", type=int, nargs=3, help="rotary axes, for heads that are not 128 wide")
    args = parser.parse_args(arguments)
    return reported(lambda: convert(args.source, args.target, DTYPES.get(args.dtype), args.axes_dims_rope))
