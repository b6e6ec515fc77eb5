"""Step1X-Edit, without the text encoders."""

import torch
from diffsynth.pipelines.flux_image import FluxImagePipeline, ModelConfig
from PIL import Image


pipe = FluxImagePipeline.from_pretrained(
    torch_dtype=torch.float32,
    device="cpu",
    model_configs=[
        ModelConfig(model_id="Qwen/Qwen2.5-VL-7B-Instruct", origin_file_pattern="model-*.safetensors"),
        ModelConfig(model_id="stepfun-ai/Step1X-Edit", origin_file_pattern="step1x-edit-i1258.safetensors"),
        ModelConfig(model_id="stepfun-ai/Step1X-Edit", origin_file_pattern="vae.safetensors"),
    ],
)
image = Image.effect_mandelbrot((48, 64), (-2, -1, 1, 1), 20).convert("RGB")
image = pipe(
    prompt="make it red",
    step1x_reference_image=image,
    cfg_scale=6,
    seed=1,
    rand_device="cpu",
    height=64,
    width=48,
    num_inference_steps=2,
)
image.save("edited.png")
