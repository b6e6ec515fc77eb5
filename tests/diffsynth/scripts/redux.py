"""Redux: an image in place of the prompt."""

import torch
from diffsynth.pipelines.flux_image import FluxImagePipeline, ModelConfig
from PIL import Image


pipe = FluxImagePipeline.from_pretrained(
    torch_dtype=torch.float32,
    device="cpu",
    model_configs=[
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="flux1-dev.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder/model.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder_2/*.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="ae.safetensors"),
        ModelConfig(
            model_id="black-forest-labs/FLUX.1-Redux-dev", origin_file_pattern="image_encoder/model.safetensors"
        ),
        ModelConfig(
            model_id="black-forest-labs/FLUX.1-Redux-dev",
            origin_file_pattern="image_embedder/diffusion_pytorch_model.safetensors",
        ),
    ],
)
image = Image.effect_mandelbrot((60, 90), (-2, -1, 1, 1), 20).convert("RGB")
image = pipe(
    prompt="",
    flux_redux_image=image,
    seed=0,
    embedded_guidance=2.5,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image.save("redux.png")
