"""The union ControlNet, twice in one call, with windows."""

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
            model_id="InstantX/FLUX.1-dev-Controlnet-Union-alpha",
            origin_file_pattern="diffusion_pytorch_model.safetensors",
        ),
    ],
)
image_1 = pipe(prompt="a girl and a cat", seed=3, height=64, width=48, num_inference_steps=2, t5_sequence_length=16)
canny = image_1.convert("L").convert("RGB")
depth = image_1.transpose(0)
image_2 = pipe(
    prompt="a boy and a dog",
    controlnet_inputs=[
        ControlNetInput(image=canny, scale=0.3, processor_id="canny", start=1.0, end=0.5),
        ControlNetInput(image=depth, scale=0.3, processor_id="depth"),
    ],
    cfg_scale=1.5,
    negative_prompt="low quality",
    seed=3,
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image_2.save("union.png")
