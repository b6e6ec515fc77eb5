"""LoRA-Encoder: LoRAs as a part of the prompt."""

from ...demand import Demand
from ..method import Method, Release, Trainable


METHOD = Method(
    package=__name__,
    name="LoRA-Encoder",
    about="LoRAs of any format as a part of the prompt",
    state="equals the reference to 1e-3 over a loop",
    page="lora_encoder",
    exports={
        "condition": ["LoRAEmbedding"],
        "model": ["FluxLoRAEncoder"],
        "pipeline": ["FluxLoRAEncoderPipeline"],
    },
    converters={"lora-encoder": ".convert:main"},
    releases=[
        Release(
            "lora-encoder",
            "LoRA-Encoder",
            {"lora_encoder": ".model:FluxLoRAEncoder"},
            counts="LoRAs",
            demand=lambda number: Demand(appended_tokens=number),
        )
    ],
    trains={"lora-encoder": Trainable(".model:FluxLoRAEncoder", ".scratch:lora_encoder")},
)
