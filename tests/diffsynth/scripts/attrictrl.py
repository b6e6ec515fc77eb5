"""AttriCtrl: two attributes by numbers."""

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
        ModelConfig(
            model_id="DiffSynth-Studio/AttriCtrl-FLUX.1-Dev", origin_file_pattern="models/brightness.safetensors"
        ),
        ModelConfig(model_id="DiffSynth-Studio/AttriCtrl-FLUX.1-Dev", origin_file_pattern="models/detail.safetensors"),
    ],
)
for value in (0.1, 0.9):
    image = pipe(
        prompt="a cat",
        seed=2,
        value_controller_inputs=[value, 1 - value],
        height=64,
        width=48,
        num_inference_steps=2,
        t5_sequence_length=16,
    )
    image.save(f"value_{value}.png")
image = pipe(
    prompt="a cat",
    seed=2,
    value_controller_inputs=0.5,
    cfg_scale=2,
    negative_prompt="ugly",
    height=64,
    width=48,
    num_inference_steps=2,
    t5_sequence_length=16,
)
image.save("one.png")
