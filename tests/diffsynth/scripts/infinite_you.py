"""InfiniteYou, with a black control image and with a drawn one."""

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
            model_id="ByteDance/InfiniteYou", origin_file_pattern="infu_flux_v1.0/aes_stage2/image_proj_model.bin"
        ),
        ModelConfig(
            model_id="ByteDance/InfiniteYou",
            origin_file_pattern="infu_flux_v1.0/aes_stage2/InfuseNetModel/*.safetensors",
        ),
    ],
)
person = Image.linear_gradient("L").resize((40, 40)).convert("RGB")
controlnet_image = Image.fromarray(np.zeros([64, 48, 3]).astype(np.uint8))
image = pipe(
    prompt="a man",
    infinityou_id_image=person,
    infinityou_guidance=1.0,
    controlnet_inputs=[ControlNetInput(image=controlnet_image, scale=1.0, processor_id="None")],
    seed=1,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image.save("man.png")
drawing = controlnet_image.copy()
drawing.paste((255, 0, 0), (10, 10, 20, 20))
image = pipe(
    prompt="a man",
    infinityou_id_image=person,
    infinityou_guidance=2.0,
    controlnet_inputs=[ControlNetInput(image=drawing, scale=0.8)],
    cfg_scale=1.5,
    seed=1,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image.save("placed.png")
