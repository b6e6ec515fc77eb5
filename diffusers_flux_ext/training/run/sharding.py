"""Weights, gradients and optimizer states that are shared out over processes, by FSDP2."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers.utils import logging
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

from ..config.sections import TrainingConfig
from ..data import TrainingData
from .absent import check_all_have_trained_conditions


logger = logging.get_logger(__name__)

BLOCKS = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
OTHER_STATES = ("adafactor", "adamw8bit", "prodigy")
# Up to this share of a card, a frozen base leaves room for activations and for what is trained.
FITS = 0.8


def sharding_plugin(accelerator: Any) -> Any:
    """Return accelerate's settings of FSDP, or `None` if weights are not shared out.

    Args:
        accelerator (`accelerate.Accelerator`, *optional*): The processes.

    Returns:
        `accelerate.FullyShardedDataParallelPlugin` or `None`
    """
    if accelerator is None or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    from accelerate import FullyShardedDataParallelPlugin

    # Without a GPU accelerate does not shard, but reads the same settings.
    return getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()


def check_sharding(config: TrainingConfig, accelerator: Any, data: TrainingData | None = None) -> None:
    """Raise a `ValueError` if a run cannot be shared out as the launch asks for.

    Args:
        config (`TrainingConfig`): The configuration.
        accelerator (`accelerate.Accelerator`, *optional*): The processes.
        data (`TrainingData`, *optional*): The data, whose rows are looked at for what a condition needs.
    """
    plugin = sharding_plugin(accelerator)
    kind = str(getattr(getattr(accelerator, "distributed_type", None), "value", "")) if plugin is None else "FSDP"
    if config.model.storage is not None and kind in ("FSDP", "DEEPSPEED"):
        raise ValueError(
            f"`model.storage` is {config.model.storage!r}, but {kind} shares out weights in the data type that they "
            f"compute in. A LoRA whose base fits one GPU is faster with every process holding all of it: launch "
            f"without {kind}, or leave `model.storage` out."
        )
    if config.model.resident is not None and kind in ("FSDP", "DEEPSPEED"):
        raise ValueError(
            f"`model.resident` is {config.model.resident!r}, but {kind} places the weights itself. Launch without "
            f"{kind}, where every process streams its own blocks, or leave `model.resident` out."
        )
    if kind == "DEEPSPEED":
        raise ValueError(
            "The launch asks for DeepSpeed, whose engine steps the optimizer by itself and has not been run with this "
            "trainer. FSDP2 shares out the same: `fsdp2.yaml` in place of ZeRO-3, and `fsdp2_keep_weights.yaml` in "
            "place of ZeRO-2, both in `examples/training/accelerate`."
        )
    if plugin is not None:
        _check_plugin(plugin, accelerator)
        _check_works_sharded(config)
        if data is not None:
            check_all_have_trained_conditions(config, data)


def _check_plugin(plugin: Any, accelerator: Any) -> None:
    if plugin.fsdp_version != 2:
        raise ValueError(f"`fsdp_version` is {plugin.fsdp_version}; expected 2. Set it in the file of the launch.")
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "`fsdp_cpu_ram_efficient_loading` is on, but every process reads the model by itself and brings one block "
            "at a time to its GPU. Set it to false."
        )
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"`mixed_precision` is {accelerator.mixed_precision!r}, under which FSDP would round rotary positions and "
            f"the weights that are trained. Set it to 'no': `model.dtype` says what is computed in."
        )


def _check_works_sharded(config: TrainingConfig) -> None:
    train, validation = config.train, config.validation
    cannot = {
        "`train.text_encoder_lora` and `train.text_encoder_2_lora`, since only blocks of FLUX.1 are shared out": bool(
            set(train.loras) - {"transformer"}
        ),
        "`train.fusion`, whose gates run in hooks": train.fusion is not None,
        "`distill`, whose teacher runs before weights are shared out": config.distill is not None,
        "`differential`, whose runs follow each other in one process": config.differential is not None,
        "`preserved` samples with `train.weights`, which need the base besides": train.weights is not None
        and any(source.preserved for source in config.data.sources),
        "`validation.images_every`, since one process draws; `validation.every` works": bool(validation.images_every),
        f"`optimizer.name: {config.optimizer.name}`, whose states have other shapes than the weights (`adamw`, `lion`,"
        f" `muon` and `schedule_free` work)": config.optimizer.name in OTHER_STATES,
        f"`optimizer.rounding: {config.optimizer.rounding}`; train float32 weights (`model.dtype`)": bool(
            config.optimizer.rounding
        ),
        "`run.fused_backward`, which steps before gradients are summed": config.run.fused_backward,
    }
    found = [what for what, is_given in cannot.items() if is_given]
    if found:
        raise ValueError(
            f"Weights are shared out over processes (FSDP), which does not work with {'; and '.join(found)}. Leave it "
            f"out, or launch with `examples/training/accelerate/ddp.yaml`, where each process holds all weights."
        )


def warn_if_needless(config: TrainingConfig, transformer: torch.nn.Module, room: int) -> None:
    """Log a warning if a frozen base is shared out that each card has room for.

    Args:
        config (`TrainingConfig`): The configuration.
        transformer (`torch.nn.Module`): The transformer.
        room (`int`): Bytes of the memory of a card.
    """
    size = sum(parameter.nbytes for parameter in transformer.parameters())
    if config.train.weights is None and size <= FITS * room:
        logger.warning(
            f"The frozen base takes {size / 1e9:.3g} GB, and the card has {room / 1e9:.3g} GB: sharing it out (FSDP) "
            f"sends all of it to every process at every pass. With `examples/training/accelerate/ddp.yaml` each "
            f"process holds the base, and only gradients of what is trained are sent; `model.storage: fp8` or `nf4` "
            f"makes it smaller."
        )


def memory_of(device: torch.device) -> int:
    """Return the bytes of a device's memory; for the CPU those of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def shard(training: torch.nn.Module, plugin: Any, device: torch.device) -> None:
    """Share the weights of a module out over all processes, block by block, in place.

    Parameters are others afterwards, so optimizers and averages are made after it.

    Args:
        training (`FluxTraining`): The module. Blocks of ControlNets in it are shared out, too.
        plugin (`accelerate.FullyShardedDataParallelPlugin`): The settings.
        device (`torch.device`): This process's device; what is on the CPU comes to it block by block.

    Raises:
        ValueError: if it has no block of a class that is to be wrapped.
    """
    from torch.distributed.device_mesh import init_device_mesh

    names = list(plugin.transformer_cls_names_to_wrap or BLOCKS)
    kinds = {type(module).__name__ for module in training.modules()}
    if unknown := [name for name in names if name not in kinds]:
        raise ValueError(
            f"`fsdp_transformer_layer_cls_to_wrap` names {unknown}, but the model has no such layer. Name {BLOCKS}."
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    offload = plugin.cpu_offload if isinstance(plugin.cpu_offload, OffloadPolicy) else OffloadPolicy()
    for module in [module for module in training.modules() if type(module).__name__ in names]:
        fully_shard(module, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward, offload_policy=offload)
    fully_shard(training, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward, offload_policy=offload)
    if isinstance(offload, CPUOffloadPolicy):
        for buffer in training.buffers():
            buffer.data = buffer.data.to(device)


@contextmanager
def summing(module: Any, accelerator: Any, now: bool) -> Iterator[None]:
    """Sum gradients over processes in this context, or keep them for the next backward pass.

    Args:
        module (`torch.nn.Module`): What the processes share.
        accelerator (`accelerate.Accelerator`, *optional*): The processes.
        now (`bool`): Whether to sum them.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
        yield
        return
    with nullcontext() if now or accelerator is None else accelerator.no_sync(module):
        yield


@contextmanager
def without_gathered(training: torch.nn.Module) -> Iterator[None]:
    """Forget weights that were gathered for a pass without gradients, before others are put in their place."""
    _reshard(training)
    try:
        yield
    finally:
        _reshard(training)


def _reshard(training: torch.nn.Module) -> None:
    for module in training.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shared_states(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Share the whole tensors of a checkpoint out like the parameters that they belong to.

    Args:
        optimizer (`torch.optim.Optimizer`): The optimizer, of parameters that may be shared out.
        state (`Mapping[str, Any]`): What its `state_dict` held, with whole tensors.

    Returns:
        `dict[str, Any]`
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(hasattr(parameter, "full_tensor") for parameter in parameters):
        return dict(state)
    states = {
        number: {name: shared_like(value, parameters[int(number)]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": states}


def shared_like(value: Any, parameter: Any) -> Any:
    """Return a whole tensor shared out like a parameter; anything of another shape as it is."""
    if not hasattr(parameter, "full_tensor") or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
