"""Flex.2: alone, with a control image, and inpainting."""

import numpy as np
import torch
from diffsynth.pipelines.flux_image import FluxImagePipeline, ModelConfig
from PIL import Image


pipe = FluxImagePipeline.from_pretrained(
    torch_dtype=torch.float32,
    device="cpu",
    model_configs=[
        ModelConfig(model_id="ostris/Flex.2-preview", origin_file_pattern="Flex.2-preview.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder/model.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder_2/*.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="ae.safetensors"),
    ],
)
image = pipe(prompt="a bird", seed=0, height=64, width=48, num_inference_steps=2, t5_sequence_length=16)
image.save("flex.png")
mask = np.zeros((64, 48, 3), dtype=np.uint8)
mask[16:40, 8:32] = 255
mask = Image.fromarray(mask)
image_2 = pipe(
    prompt="a red bird",
    flex_inpaint_image=image,
    flex_inpaint_mask=mask,
    flex_control_image=image.transpose(0),
    flex_control_strength=0.5,
    flex_control_stop=0.5,
    seed=4,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image_2.save("inpainted.png")
image_3 = pipe(
    prompt="a red bird",
    flex_control_image=image,
    flex_control_strength=0.9,
    flex_control_stop=None,
    seed=4,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image_3.save("controlled.png")
