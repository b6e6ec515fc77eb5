"""LoRA-Fusion: two LoRAs under gates."""

import torch
from diffsynth.pipelines.flux_image import FluxImagePipeline, ModelConfig


pipe = FluxImagePipeline.from_pretrained(
    torch_dtype=torch.float32,
    device="cpu",
    model_configs=[
        ModelConfig(
            model_id="black-forest-labs/FLUX.1-dev",
            origin_file_pattern="flux1-dev.safetensors",
            offload_dtype=torch.float32,
            offload_device="cpu",
        ),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder/model.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder_2/*.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="ae.safetensors"),
        ModelConfig(
            model_id="DiffSynth-Studio/LoRAFusion-preview-FLUX.1-dev", origin_file_pattern="model.safetensors"
        ),
    ],
    vram_limit=8,
)
pipe.enable_lora_merger()
pipe.load_lora(pipe.dit, ModelConfig(model_id="cancel13/cxsk", origin_file_pattern="30.safetensors"))
pipe.load_lora(
    pipe.dit,
    ModelConfig(
        model_id="DiffSynth-Studio/ArtAug-lora-FLUX.1dev-v1",
        origin_file_pattern="merged_lora.safetensors",
    ),
)
image = pipe(prompt="a house", seed=0, height=64, width=48, num_inference_steps=2, t5_sequence_length=16)
image.save("fused.png")
