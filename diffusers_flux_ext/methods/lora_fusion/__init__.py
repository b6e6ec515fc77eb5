"""LoRA-Fusion: several LoRAs under learned gates."""

from ..method import Addition, Method, Trainable


METHOD = Method(
    package=__name__,
    name="LoRA-Fusion",
    about="several LoRAs under learned gates",
    state="equals the reference to 1e-3 over a loop",
    page="lora_fusion",
    exports={"gates": ["FluxLoRAFusion"], "hook": ["disable_lora_fusion", "enable_lora_fusion"]},
    additions={
        "lora_fusion": Addition(".gates:FluxLoRAFusion", ".hook:enable_lora_fusion", ".hook:disable_lora_fusion")
    },
    trains={"lora-fusion": Trainable(".gates:FluxLoRAFusion", ".scratch:lora_fusion")},
)
