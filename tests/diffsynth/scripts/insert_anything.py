"""Insert-Anything: Fill, Redux and a LoRA."""

import torch
from diffsynth.pipelines.flux_image import FluxImagePipeline, ModelConfig
from PIL import Image


pipe = FluxImagePipeline.from_pretrained(
    torch_dtype=torch.float32,
    device="cpu",
    model_configs=[
        ModelConfig(model_id="black-forest-labs/FLUX.1-Fill-dev", origin_file_pattern="flux1-fill-dev.safetensors"),
        ModelConfig(
            model_id="black-forest-labs/FLUX.1-Fill-dev", origin_file_pattern="text_encoder/model.safetensors"
        ),
        ModelConfig(model_id="black-forest-labs/FLUX.1-Fill-dev", origin_file_pattern="text_encoder_2/*.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-Fill-dev", origin_file_pattern="ae.safetensors"),
        ModelConfig(
            model_id="black-forest-labs/FLUX.1-Redux-dev", origin_file_pattern="image_encoder/model.safetensors"
        ),
        ModelConfig(
            model_id="black-forest-labs/FLUX.1-Redux-dev",
            origin_file_pattern="image_embedder/diffusion_pytorch_model.safetensors",
        ),
    ],
)
pipe.load_lora(
    pipe.dit,
    ModelConfig(
        model_id="HuanJue/Insert-Anything",
        origin_file_pattern="20250321_steps5000_pytorch_lora_weights.safetensors",
    ),
)
source = Image.effect_mandelbrot((120, 90), (-2, -1, 1, 1), 20).convert("RGB")
source_mask = Image.new("L", (120, 90))
source_mask.paste(255, (50, 30, 80, 60))
reference = Image.linear_gradient("L").resize((80, 100)).convert("RGB")
reference_mask = Image.new("L", (80, 100))
reference_mask.paste(255, (20, 20, 60, 80))
image = pipe(
    insert_anything_source_image=source,
    insert_anything_source_mask=source_mask,
    insert_anything_ref_image=reference,
    insert_anything_ref_mask=reference_mask,
    embedded_guidance=30,
    seed=0,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image.save("inserted.png")
