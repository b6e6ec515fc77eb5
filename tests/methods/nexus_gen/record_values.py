"""Records what the reference's language model of Nexus-Gen gives, under the transformers that it needs (4.49).

It cannot be imported under today's transformers, so it runs in an environment of its own, and the values that it gives
are kept in `nexus_gen.safetensors` beside this file. From the root of the repository, in today's environment:

    python -m tests.methods.nexus_gen.record_values write nexus_gen_files

and then, in an environment with `pip install torch==2.13.0 transformers==4.49.0 jinja2 pillow` and
`pip install --no-deps diffsynth==2.1.12`, or with the folder of the reference package as a third argument:

    python tests/parity/record_nexus_gen.py run nexus_gen_files
"""

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any


VALUES = Path(__file__).with_name("nexus_gen.safetensors")
# Every so many rows of the embeddings are kept.
KEPT_ROWS = 5
SIZES = {"small.png": (90, 60), "large.png": (600, 460), "thin.png": (30, 700)}
CASES: dict[str, tuple[str, str | None]] = {
    "generation": ("a red sign in the sky", None),
    "empty": ("", None),
    "chinese": ("一只可爱的猫咪", None),
    "editing": ("make the sign red", "small.png"),
    "reduced": ("给猫加一副太阳镜", "large.png"),
    "thin": ("paint it", "thin.png"),
    "placed": ("in <image> the sky is red", "small.png"),
}
# What `processor/chat_template.json` of the published model does with plain messages.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def write(folder: Path) -> None:
    """The tiny model in the published layout, and the pictures."""
    from benchmarks.support.tiny.nexus_gen import pictures, write_published_folder

    folder.mkdir(parents=True)
    write_published_folder(folder)
    for name, picture in pictures(SIZES).items():
        picture.save(folder / name)


def import_reference(package: str | None) -> Any:
    """The reference's language model, without the imports of its package."""
    root = Path(package) if package else Path(importlib.util.find_spec("diffsynth").submodule_search_locations[0])
    for name, path in (("diffsynth", root), ("diffsynth.models", root / "models")):
        module = types.ModuleType(name)
        module.__path__ = [str(path)]
        sys.modules[name] = module
    return importlib.import_module("diffsynth.models.nexus_gen_ar_model"), importlib.import_module(
        "diffsynth.models.nexus_gen"
    )


def load(folder: Path, package: str | None) -> Any:
    """The reference's `NexusGenAutoregressiveModel` with the weights of the folder."""
    import torch
    from safetensors.torch import load_file
    from transformers import Qwen2_5_VLConfig, Qwen2TokenizerFast, Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    architecture, reference = import_reference(package)
    weights = {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
    model = reference.NexusGenAutoregressiveModel.__new__(reference.NexusGenAutoregressiveModel)
    torch.nn.Module.__init__(model)
    config = Qwen2_5_VLConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model.model = architecture.Qwen2_5_VLForConditionalGeneration(config).float()
    model.load_state_dict({f"model.{key}": value for key, value in weights.items()})
    model.processor = architecture.Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=12845056),
        tokenizer=Qwen2TokenizerFast.from_pretrained(folder),
        chat_template=TEMPLATE,
    )

    def bound_image(image: Any, max_pixels: int = 262640) -> Any:
        # The same function as in qwen-vl-utils, whose newer versions the reference cannot call.
        height, width = smart_resize(image.height, image.width, max_pixels=max_pixels)
        return image.resize((width, height))

    model.bound_image = bound_image
    return model.eval().requires_grad_(False)


def run(folder: Path, package: str | None) -> None:
    """The reference's embeddings of every case, written to `VALUES`."""
    import transformers
    from PIL import Image
    from safetensors.torch import save_file

    model, values = load(folder, package), {}
    for name, (prompt, picture) in CASES.items():
        image = None if picture is None else Image.open(folder / picture).convert("RGB")
        embeds, reference, grids = model(prompt, image)
        values[f"{name}.image_embeds"] = embeds[::KEPT_ROWS].contiguous()
        values[f"{name}.grids"] = grids
        if image is not None:
            values[f"{name}.reference_embeds"] = reference[::KEPT_ROWS].contiguous()
    save_file(values, VALUES, metadata={"transformers": transformers.__version__})


if __name__ == "__main__":
    command, target, *rest = sys.argv[1:]
    if command == "write":
        write(Path(target))
    else:
        run(Path(target), rest[0] if rest else None)
