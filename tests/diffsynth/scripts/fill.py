"""Fill: a hole in an image, and none."""

import torch
from diffsynth.pipelines.flux_image import FluxImagePipeline, ModelConfig
from PIL import Image


pipe = FluxImagePipeline.from_pretrained(
    torch_dtype=torch.float32,
    device="cpu",
    model_configs=[
        ModelConfig(model_id="black-forest-labs/FLUX.1-Fill-dev", origin_file_pattern="flux1-fill-dev.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder/model.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder_2/*.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="ae.safetensors"),
    ],
)
image = Image.effect_mandelbrot((48, 64), (-2, -1, 1, 1), 20).convert("RGB")
mask = Image.new("L", (48, 64))
mask.paste(255, (10, 10, 30, 40))
image_2 = pipe(
    prompt="a hat",
    flux_fill_image=image,
    flux_fill_mask=mask,
    embedded_guidance=30,
    seed=0,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image_2.save("filled.png")
image_3 = pipe(
    prompt="a hat", embedded_guidance=30, seed=0, height=64, width=48, num_inference_steps=2, t5_sequence_length=16
)
image_3.save("blank.png")
