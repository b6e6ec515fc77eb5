"""The inpainting ControlNet."""

import numpy as np
import torch
from diffsynth.pipelines.flux_image import ControlNetInput, FluxImagePipeline, ModelConfig
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
            model_id="alimama-creative/FLUX.1-dev-Controlnet-Inpainting-Beta",
            origin_file_pattern="diffusion_pytorch_model.safetensors",
        ),
    ],
)
image_1 = pipe(prompt="a girl with a hat", seed=3, height=64, width=48, num_inference_steps=2, t5_sequence_length=16)
mask = np.zeros((64, 48, 3), dtype=np.uint8)
mask[16:40, 8:32] = 255
mask = Image.fromarray(mask)
image_2 = pipe(
    prompt="a girl with a red hat",
    controlnet_inputs=[ControlNetInput(image=image_1, inpaint_mask=mask, scale=0.9)],
    seed=4,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image_2.save("inpainted.png")
