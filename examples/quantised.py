"""A GGUF file as the transformer: written first from the embedded tiny model, or one that you have.

python examples/quantised.py
python examples/quantised.py --gguf flux1-dev-Q4_K_S.gguf --model black-forest-labs/FLUX.1-dev --vram 8

The first form needs `pip install gguf`, and so does every file.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _placing import add_vram, place
from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig

from diffusers_flux_ext import EntityRegions, FluxEliGenPipeline, FluxExtTransformer2DModel, tiny_flux_path


TINY: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 20, "max_sequence_length": 32}
PROMPT = "a white background"
LEFT, RIGHT = (0.08, 0.3, 0.46, 0.7), (0.54, 0.3, 0.92, 0.7)


def write_tiny_gguf(path: Path) -> None:
    """Write the embedded transformer as GGUF in Q8_0, whose blocks are 32 numbers of a row."""
    import gguf

    model = FluxTransformer2DModel.from_pretrained(tiny_flux_path(), subfolder="transformer")
    writer = gguf.GGUFWriter(path, "flux")
    for name, weight in model.state_dict().items():
        is_packed = weight.ndim == 2 and weight.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if is_packed else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weight.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Draw two entities with a LoRA on packed weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="a GGUF file of a FLUX.1 transformer; one is written by default")
    parser.add_argument("--model", help="repository or folder of the other parts; the embedded model by default")
    parser.add_argument("--lora", help="EliGen LoRA; that of the embedded model by default, none for another")
    parser.add_argument("--steps", type=int, help="20 with the tiny model and 28 with another by default")
    add_vram(parser)
    parser.add_argument("--out", type=Path, default=Path("quantised.png"))
    args = parser.parse_args()

    is_tiny = args.model is None
    folder, path = args.model or tiny_flux_path(), args.gguf or args.out.with_suffix(".gguf")
    if args.gguf is None:
        write_tiny_gguf(path)
    dtype = torch.float32 if is_tiny else torch.bfloat16
    transformer = FluxExtTransformer2DModel.from_single_file(
        path,
        quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
        config=folder if is_tiny else None,
        subfolder="transformer" if is_tiny else None,
    )
    pipe = FluxEliGenPipeline.from_pretrained(folder, transformer=transformer, dtype=dtype)
    lora = args.lora or (Path(tiny_flux_path()).parent / "tiny_flux_eligen_lora.safetensors" if is_tiny else None)
    if lora is not None:
        pipe.load_lora_weights(lora)
    call: dict[str, Any] = dict(TINY) if is_tiny else {"height": 1024, "width": 1024, "max_sequence_length": 512}
    if args.steps:
        call["num_inference_steps"] = args.steps
    entities = EntityRegions(["a red circle", "a blue star"], [LEFT, RIGHT])
    sizes = {name: call[name] for name in ("height", "width", "max_sequence_length")}
    place(pipe, args.vram, conditions=[entities], **sizes)
    guided = {"negative_prompt": "", "true_cfg_scale": 2.0} if is_tiny else {}
    generator = torch.Generator().manual_seed(0)
    pipe(PROMPT, conditions=[entities], generator=generator, **guided, **call).images[0].save(args.out)


if __name__ == "__main__":
    main()
