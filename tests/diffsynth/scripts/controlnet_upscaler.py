"""The upscaler, with tiles."""

import torch
from diffsynth.pipelines.flux_image import ControlNetInput, FluxImagePipeline, ModelConfig


pipe = FluxImagePipeline.from_pretrained(
    torch_dtype=torch.float32,
    device="cpu",
    model_configs=[
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="flux1-dev.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder/model.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder_2/*.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="ae.safetensors"),
        ModelConfig(
            model_id="jasperai/Flux.1-dev-Controlnet-Upscaler",
            origin_file_pattern="diffusion_pytorch_model.safetensors",
        ),
    ],
)
image_1 = pipe(prompt="a river", seed=0, height=64, width=48, num_inference_steps=2, t5_sequence_length=16)
image_1 = image_1.resize((96, 96))
image_2 = pipe(
    prompt="a river",
    controlnet_inputs=[ControlNetInput(image=image_1, scale=0.7)],
    input_image=image_1,
    denoising_strength=0.99,
    height=96,
    width=96,
    tiled=True,
    seed=1,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image_2.save("upscaled.png")
