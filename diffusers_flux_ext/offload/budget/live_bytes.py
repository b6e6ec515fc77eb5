"""Peak memory of a piece of code, counted tensor by tensor, on any device including meta."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages that were created inside it, and remembers their peak.

    What eager PyTorch allocates for results is counted exactly; scratch memory inside a kernel is not.

    Attributes:
        live (`int`): Current bytes.
        peak (`int`): Largest number of bytes at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(leaf.untyped_storage()) not in given:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def forget(_: Any) -> None:
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


class _FlashAttention(TorchFunctionMode):
    """Count attention as the fused kernels hold it: the result, the sums of its rows and the mask as numbers.

    On the meta device PyTorch would choose the kernel that holds the whole matrix of scores.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = {**dict(zip(("query", "key", "value", "attn_mask"), args)), **(kwargs or {})}
        query, value, mask = named["query"], named["value"], named.get("attn_mask")
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        numbers = None if mask is None else mask.to(query.dtype).contiguous()
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        del sums, numbers
        return result


def peak_bytes(call: Callable[[], Any], fused_attention: bool = True) -> int:
    """Return the peak bytes of tensors that `call` creates.

    Args:
        call (`Callable`): Runs once; on meta tensors it takes neither memory nor much time.
        fused_attention (`bool`, *optional*, defaults to `True`):
            Whether attention is counted as the fused kernels need it, instead of being run. Meta tensors only.

    Returns:
        `int`
    """
    with torch.no_grad(), LiveBytes() as counter:
        if fused_attention:
            with _FlashAttention():
                call()
        else:
            call()
    return counter.peak
