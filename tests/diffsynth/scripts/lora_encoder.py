"""LoRA-Encoder: a LoRA in the transformer and in the prompt."""

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
        ModelConfig(model_id="DiffSynth-Studio/LoRA-Encoder-FLUX.1-Dev", origin_file_pattern="model.safetensors"),
    ],
)
lora = ModelConfig(model_id="VoidOc/flux_animal_forest1", origin_file_pattern="20.safetensors")
pipe.load_lora(pipe.dit, lora)
image = pipe(prompt="a car", seed=0, height=64, width=48, num_inference_steps=2, t5_sequence_length=16)
image.save("lora.png")
image = pipe(
    prompt="a car",
    seed=0,
    lora_encoder_inputs=lora,
    lora_encoder_scale=0.8,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image.save("encoded.png")
