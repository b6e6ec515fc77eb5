"""EliGen: regions, with its LoRA."""

import numpy as np
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
    ],
)
pipe.load_lora(
    pipe.dit, ModelConfig(model_id="DiffSynth-Studio/Eligen", origin_file_pattern="model_bf16.safetensors"), alpha=1
)
masks = []
for left in (0, 24):
    mask = np.zeros((64, 48, 3), dtype=np.uint8)
    mask[8:56, left : left + 20] = 255
    masks.append(Image.fromarray(mask))
image = pipe(
    prompt="a cat and a dog",
    negative_prompt="low quality",
    cfg_scale=3.0,
    embedded_guidance=3.5,
    seed=0,
    eligen_entity_prompts=["a red cat", "a blue dog"],
    eligen_entity_masks=masks,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image.save("eligen.png")
image = pipe(
    prompt="a cat and a dog",
    negative_prompt="low quality",
    cfg_scale=3.0,
    seed=0,
    eligen_enable_on_negative=True,
    eligen_entity_prompts=["a red cat", "a blue dog"],
    eligen_entity_masks=masks,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image.save("eligen_both.png")
