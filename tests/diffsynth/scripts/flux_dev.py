"""FLUX.1-dev, with and without guidance."""

import torch
from diffsynth.pipelines.flux_image import FluxImagePipeline, ModelConfig


pipe = FluxImagePipeline.from_pretrained(
    torch_dtype=torch.float32,
    device="cpu",
    model_configs=[
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="flux1-dev.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder/model.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder_2/*.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="ae.safetensors"),
    ],
)
image = pipe(prompt="a cat on the table", seed=0, height=64, width=48, num_inference_steps=2, t5_sequence_length=16)
image.save("flux_dev.png")
image = pipe(
    prompt="a cat on the table",
    negative_prompt="ugly",
    cfg_scale=2.0,
    embedded_guidance=2.5,
    seed=0,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image.save("flux_dev_cfg.png")
