"""FLUX.1-Kontext-dev: one edit after another, and two references."""

import torch
from diffsynth.pipelines.flux_image import FluxImagePipeline, ModelConfig


pipe = FluxImagePipeline.from_pretrained(
    torch_dtype=torch.float32,
    device="cpu",
    model_configs=[
        ModelConfig(
            model_id="black-forest-labs/FLUX.1-Kontext-dev", origin_file_pattern="flux1-kontext-dev.safetensors"
        ),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder/model.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder_2/*.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="ae.safetensors"),
    ],
)
image_1 = pipe(
    prompt="a small house",
    seed=1,
    embedded_guidance=2.5,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image_1.save("image_1.png")
image_2 = pipe(
    prompt="a red house",
    kontext_images=image_1,
    seed=2,
    embedded_guidance=2.5,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image_2.save("image_2.png")
image_3 = pipe(
    prompt="both houses",
    kontext_images=[image_1, image_2],
    seed=3,
    embedded_guidance=2.5,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image_3.save("image_3.png")
