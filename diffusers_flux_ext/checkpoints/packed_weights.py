"""Weights that a quantisation library holds in tensors of its own: which library, and how many bytes they take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight
from torch import nn

from .._compat import dequantize_gguf_tensor


GGUF, TORCHAO, QUANTO, BITSANDBYTES, NUNCHAKU = "GGUF", "torchao", "optimum-quanto", "bitsandbytes", "nunchaku"
# Numbers in a block, and the bytes that it takes.
GGUF_FORMATS = {
    "Q8_0": (32, 34),
    "Q6_K": (256, 210),
    "Q5_K": (256, 176),
    "Q5_0": (32, 22),
    "Q4_K": (256, 144),
    "Q4_0": (32, 18),
    "Q3_K": (256, 110),
    "Q2_K": (256, 84),
}
# By the first part of the module that defines the class of a weight or of its layer.
LIBRARIES = {
    "torchao": TORCHAO,
    "optimum": QUANTO,
    "bitsandbytes": BITSANDBYTES,
    "nunchaku": NUNCHAKU,
    "sdnq": "SDNQ",
    "modelopt": "ModelOpt",
    "auto_round": "AutoRound",
}


class PlannedLinear(nn.Linear):
    """A layer of which only the size is known: it stands for a quantised one in plans, and does not compute."""

    packing: str


def what_runs() -> str:
    """Return a sentence that says which kinds of quantisation run with conditions."""
    return (
        "GGUF files, torchao (int8, int4, fp8), optimum-quanto, bitsandbytes and files in fp8 with scales run with "
        "every condition."
    )


def check_not_nunchaku(names: Iterable[str], model_class: type | None = None) -> None:
    """Raise a `ValueError` if a file or a model is one of nunchaku.

    Args:
        names (`Iterable[str]`): Keys of a file.
        model_class (`type`, *optional*): The class of a model.

    Raises:
        ValueError: If it is; the message says what runs instead.
    """
    marks = (".qweight", ".wscales", ".smooth", ".smooth_factor")
    is_file = len({name.rpartition(".")[2] for name in names if name.endswith(marks)}) > 1
    is_model = (getattr(model_class, "__module__", None) or "").split(".")[0] == NUNCHAKU
    if is_file or is_model:
        raise ValueError(
            f"This {'file' if is_file else 'transformer'} is nunchaku's (SVDQuant), whose blocks run in one call of "
            f"its own, without the attention processors that conditions need. {what_runs()}"
        )


def packing_of(layer: nn.Module) -> str | None:
    """Return the name of what quantised a layer, such as `"torchao"`; `None` for an ordinary one.

    Args:
        layer (`torch.nn.Module`): A layer, whose own `weight` is looked at.
    """
    if isinstance(layer, PlannedLinear):
        return layer.packing
    weight = layer._parameters.get("weight")
    if hasattr(weight, "quant_type") and hasattr(weight, "quant_shape"):
        return GGUF
    classes = (type(weight), type(weight.data) if isinstance(weight, torch.Tensor) else None, type(layer))
    for each in classes:
        name = LIBRARIES.get(getattr(each, "__module__", "").split(".")[0])
        if name is not None:
            return name
    return None


def packed_layers(model: nn.Module) -> dict[str, str]:
    """Return the quantised layers of a model: what quantised each, by path.

    Args:
        model (`torch.nn.Module`): A model.
    """
    found = ((path, packing_of(layer)) for path, layer in model.named_modules())
    return {path: packing for path, packing in found if packing is not None}


def packings(model: nn.Module) -> tuple[str, ...]:
    """Return the names of what quantised layers of a model; none for an ordinary one."""
    return tuple(sorted(set(packed_layers(model).values())))


def stored_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes that a tensor takes, with all scales and tables that belong to it.

    Args:
        tensor (`torch.Tensor`): Of any class; `numel` and `element_size` of packed ones say what they stand for.
    """
    return sum(part.numel() * part.element_size() for part in _parts(tensor))


def _parts(tensor: Any) -> Iterator[torch.Tensor]:
    """Yield the plain tensors that a tensor consists of."""
    if hasattr(tensor, "__tensor_flatten__"):
        names = tensor.__tensor_flatten__()[0]
        for inner in (getattr(tensor, name) for name in names):
            yield from _parts(inner) if inner is not None else ()
        return
    yield tensor
    # bitsandbytes holds its scales beside the tensor.
    if getattr(tensor, "SCB", None) is not None:
        yield tensor.SCB
    yield from _state_parts(getattr(tensor, "quant_state", None))


def _state_parts(state: Any) -> Iterator[torch.Tensor]:
    for value in vars(state).values() if state is not None else ():
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value) is type(state):
            yield from _state_parts(value)


def unpacked_weight(layer: nn.Module) -> torch.Tensor:
    """Return the weight that a layer computes with, in an ordinary tensor.

    Args:
        layer (`torch.nn.Module`): A Linear, quantised or not.

    Returns:
        `torch.Tensor` of shape `(out_features, in_features)`
    """
    weight: Any = layer.weight
    if packing_of(layer) == GGUF:
        return dequantize_gguf_tensor(weight)
    if hasattr(weight, "__tensor_flatten__") and hasattr(weight, "dequantize"):
        return weight.dequantize()
    if packing_of(layer) == BITSANDBYTES:
        # PEFT's function for layers moves the weight on the CPU, which loses its scales.
        return dequantize_bnb_weight(weight, state=getattr(layer, "state", None))
    return dequantize_module_weight(layer)


def move_in_place(tensor: torch.Tensor, device: torch.device) -> None:
    """Move a parameter or buffer, which stays the same object.

    Args:
        tensor (`torch.Tensor`): Of any class; the tensors inside of packed ones move with it.
        device (`torch.device`): Where it goes.
    """
    if tensor.device == device:
        return
    moved = tensor.detach().to(device)
    if hasattr(tensor, "__tensor_flatten__"):
        # Assigning to `data` would leave the tensors inside where they are.
        torch.utils.swap_tensors(tensor, nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved)
    else:
        tensor.data = moved


def check_not_packed(model: nn.Module, work: str, remedy: str) -> None:
    """Raise a `ValueError` if a model is quantised.

    Args:
        model (`torch.nn.Module`): The model.
        work (`str`): What cannot be done with it, as the rest of a sentence, such as `"be streamed from disk"`.
        remedy (`str`): What to do instead, as whole sentences.

    Raises:
        ValueError: If a layer is quantised; the message names the library.
    """
    found = packed_layers(model)
    if found:
        raise ValueError(
            f"This {type(model).__name__} is quantised by {', '.join(packings(model))} (`{next(iter(found))}` and "
            f"{len(found) - 1} more layers), so it cannot {work}. {remedy}"
        )
