"""Choose the weights of a module to stream, and locate them in files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ...checkpoints.messages import list_keys, naming
from ...checkpoints.packed_weights import stored_bytes
from ...checkpoints.stored import StoredTensor, read_layout
from ..blocks import FP8, castable_weights, find_blocks, streamable_blocks
from .files import FileReader, plan_pieces
from .store import WeightToStore, store_weights
from .stream import stream_of
from .weights import StreamedBlock, StreamedWeight


@dataclass(frozen=True)
class Slot:
    """A parameter or persistent buffer: its module, its name there, and its key in a file."""

    owner: nn.Module
    attribute: str
    key: str

    @property
    def tensor(self) -> Tensor:
        """Its current value."""
        return getattr(self.owner, self.attribute)


@dataclass(frozen=True)
class StreamingPlan:
    """What is streamed, and from which files.

    Attributes:
        blocks (`list[StreamedBlock]`): The streamed blocks, in the order of their use.
        resident (`dict[str, list[Slot]]`): What stays in memory and comes from the file, by key.
        files (`dict[str, StoredTensor]`): The tensors of the file or files, by key.
    """

    blocks: list[StreamedBlock]
    resident: dict[str, list[Slot]]
    files: Mapping[str, StoredTensor]


def choose_blocks(module: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return a module's blocks, or those that `names` selects, one by one or by their list.

    Args:
        module (`nn.Module`): The module.
        names (`Sequence[str]`, *optional*): Names of blocks or of their lists.

    Returns:
        `dict[str, nn.Module]`: Blocks by name.

    Raises:
        ValueError: If there are none, or a name is unknown.
    """
    blocks = find_blocks(module)
    if not blocks:
        raise ValueError(f"{type(module).__name__} has no `nn.ModuleList` of blocks, so it cannot be streamed.")
    if names is None:
        return blocks
    lists = dict.fromkeys(name.rpartition(".")[0] for name in blocks)
    chosen = {name: block for name, block in blocks.items() if name in names or name.rpartition(".")[0] in names}
    unknown = [name for name in names if name not in blocks and name not in lists]
    if unknown or not chosen:
        raise ValueError(
            f"`blocks` names {list_keys(unknown) or 'nothing'}; {type(module).__name__} has the lists "
            f"{list_keys(lists)}. Name a list, or a member such as `{next(iter(blocks))}`."
        )
    return chosen


def _slots(module: nn.Module) -> Iterator[Slot]:
    """Return all weights that a file without adapters has, by their keys there."""
    tuners = [name for name, part in module.named_modules() if isinstance(part, BaseTunerLayer)]
    adapters = tuple(f"{name}." for name in tuners)
    kept = tuple(f"{name}.base_layer." for name in tuners)
    for prefix, owner in module.named_modules(remove_duplicate=False):
        names = [
            *owner._parameters,
            *(name for name in owner._buffers if name not in owner._non_persistent_buffers_set),
        ]
        for attribute in names:
            key = f"{prefix}.{attribute}" if prefix else attribute
            if getattr(owner, attribute) is None or (key.startswith(adapters) and not key.startswith(kept)):
                continue
            # Attention processors with weights come with an adapter, not with the model.
            if ".processor." not in key and not key.startswith("encoder_hid_proj."):
                yield Slot(owner, attribute, key.replace(".base_layer.", "."))


def split_weights(
    module: nn.Module, blocks: Mapping[str, nn.Module]
) -> tuple[dict[str, list[Slot]], dict[str, list[Slot]]]:
    """Split the slots into those to stream, by block, and the others, by key. Tied and small weights stay.

    Args:
        module (`nn.Module`): The module.
        blocks (`Mapping[str, nn.Module]`): Its blocks that are streamed.

    Returns:
        `tuple[dict[str, list[Slot]], dict[str, list[Slot]]]`
    """
    slots = list(_slots(module))
    uses: dict[int, int] = {}
    for slot in slots:
        uses[id(slot.tensor)] = uses.get(id(slot.tensor), 0) + 1
    streamed: dict[str, list[Slot]] = {name: [] for name in blocks}
    resident: dict[str, list[Slot]] = {}
    by_name = {f"{name}.": name for name in blocks}
    for slot in slots:
        block = next((name for prefix, name in by_name.items() if slot.key.startswith(prefix)), None)
        is_matrix = slot.attribute in slot.owner._parameters and slot.tensor.ndim > 1
        # Only layers that say so compute from bytes alone; others keep tables beside them.
        moves = slot.tensor.is_floating_point() or getattr(slot.owner, "streams_bytes", False)
        if block and is_matrix and moves and uses[id(slot.tensor)] == 1:
            streamed[block].append(slot)
        else:
            resident.setdefault(str(id(slot.tensor)), []).append(slot)
    return {name: found for name, found in streamed.items() if found}, resident


def _check(slots: Sequence[Slot], resident: Mapping[str, Sequence[Slot]], files: Mapping[str, StoredTensor]) -> None:
    known = {slot.key: slot for slot in slots} | {slot.key: slot for tied in resident.values() for slot in tied}
    tied_elsewhere = {slot.key for tied in resident.values() if any(s.key in files for s in tied) for slot in tied}
    missing = [key for key in known if key not in files and key not in tied_elsewhere]
    surplus = [key for key in files if key not in known]
    wrong = [key for key, slot in known.items() if key in files and files[key].shape != tuple(slot.tensor.shape)]
    floating = [key for key, slot in known.items() if key in files and slot.tensor.is_floating_point()]
    whole = [key for key in floating if not files[key].dtype.is_floating_point]
    kinds = (
        ("missing", missing), ("surplus", surplus), ("of another shape", wrong), ("not floating-point numbers", whole)
    )  # fmt: skip
    problems = [f"{what}: {list_keys(keys)}" for what, keys in kinds if keys]
    if problems:
        names = sorted({tensor.path.name for tensor in files.values()})[:5]
        raise ValueError(
            f"The file ({', '.join(names)}) does not fit the module. {'; '.join(problems)}. Pass the module's own "
            "file. If its loader renames weights, as that of Qwen2.5-VL does, load the module and stream it with "
            "`offload_dir` in place of `source`."
        )


def check_folder(module: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Raise a `ValueError` if the files of a folder do not fit a module, which may be on the meta device."""
    streamed, resident = split_weights(module, find_blocks(module))
    with naming(folder):
        _check([slot for block in streamed.values() for slot in block], resident, read_layout(folder))


def make_plan(
    module: nn.Module,
    source: str | os.PathLike[str] | None,
    names: Sequence[str] | None,
    storage_dtype: torch.dtype | None,
    dtype: torch.dtype | None,
    offload_dir: str | os.PathLike[str] | None,
) -> StreamingPlan:
    """Decide what is streamed and from which file, and write the file if needed. The module is not changed.

    Args:
        module (`nn.Module`): The module.
        source (`str` or `os.PathLike`, *optional*): Its file or folder.
        names (`Sequence[str]`, *optional*): The blocks to stream.
        storage_dtype (`torch.dtype`, *optional*): Data type that Linears are stored in.
        dtype (`torch.dtype`, *optional*): Data type that the blocks compute in.
        offload_dir (`str` or `os.PathLike`, *optional*): Folder for a file that has to be written.

    Returns:
        `StreamingPlan`

    Raises:
        ValueError: If something does not fit.
    """
    streamed, resident = split_weights(module, choose_blocks(module, names))
    slots = [slot for block in streamed.values() for slot in block]
    files: Mapping[str, StoredTensor] = read_layout(source) if source is not None else {}
    if source is not None:
        with naming(source):
            _check(slots, resident, files)
    elif meta := [slot.key for slot in slots if slot.tensor.is_meta]:
        raise ValueError(f"These weights are on the meta device: {list_keys(meta)}. Pass their file as `source`.")
    stored = {slot.key: _stored_dtype(slot, files, storage_dtype) for slot in slots}
    where = files
    if source is None or any(stored[key] != files[key].dtype for key in stored):
        where = _write(slots, stored, files, offload_dir)
    blocks = [_block(name, found, where, dtype) for name, found in streamed.items()]
    kept = {next(s.key for s in tied if s.key in files): tied for tied in resident.values()} if files else {}
    return StreamingPlan(blocks, kept, files)


def _stored_dtype(slot: Slot, files: Mapping[str, StoredTensor], storage_dtype: torch.dtype | None) -> torch.dtype:
    present = files[slot.key].dtype if slot.key in files else slot.tensor.dtype
    # The Linears of adaptive norms suffer most from 8 bits, so they keep their precision, as in diffusers.
    eligible = isinstance(slot.owner, nn.Linear) and "norm" not in slot.key
    return storage_dtype if storage_dtype is not None and eligible else present


def _write(
    slots: Sequence[Slot],
    stored: Mapping[str, torch.dtype],
    files: Mapping[str, StoredTensor],
    offload_dir: str | os.PathLike[str] | None,
) -> dict[str, StoredTensor]:
    if offload_dir is None:
        raise ValueError(
            "`offload_dir` is missing: the weights have to be written to a file, because `source` was not given or "
            "has another data type than `storage_dtype`. Pass a folder with room for them."
        )
    reader = FileReader(files[slot.key].path for slot in slots if slot.key in files)
    try:
        weights = [
            WeightToStore(slot.key, stored[slot.key], tuple(slot.tensor.shape), _getter(slot, files, reader))
            for slot in slots
        ]
        return store_weights(weights, offload_dir)
    finally:
        reader.close()


def _getter(slot: Slot, files: Mapping[str, StoredTensor], reader: FileReader):  # type: ignore[no-untyped-def]
    if slot.key in files:
        return lambda: read_tensor(files[slot.key], reader)
    return lambda: slot.tensor


def read_tensor(stored: StoredTensor, reader: FileReader) -> Tensor:
    """Read one tensor."""
    pieces, _, size = plan_pieces([stored])
    buffer = torch.empty(size, dtype=torch.uint8)
    reader.read(pieces, buffer)
    return buffer.view(stored.dtype).view(stored.shape)


def _block(
    name: str, slots: Sequence[Slot], files: Mapping[str, StoredTensor], dtype: torch.dtype | None
) -> StreamedBlock:
    pieces, positions, size = plan_pieces([files[slot.key] for slot in slots])
    weights = [
        StreamedWeight(
            slot.key,
            files[slot.key].path,
            slot.owner,
            slot.attribute,
            files[slot.key].dtype,
            weight_dtype(slot.tensor, files[slot.key].dtype, dtype),
            tuple(slot.tensor.shape),
            positions[slot.key],
            slot.tensor.requires_grad,
            tuple(slot.owner._parameters),
        )
        for slot in slots
    ]
    return StreamedBlock(name, weights, pieces, size)


def weight_dtype(present: Tensor, stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """Return the data type that a weight computes in: the requested one, the module's, or the file's."""
    if not stored.is_floating_point:
        return stored
    if wanted is not None:
        return wanted
    if not present.is_meta and present.dtype not in FP8:
        return present.dtype
    return torch.bfloat16 if stored in FP8 else stored


def block_bytes(module: nn.Module, storage_dtype: torch.dtype | None = None) -> dict[str, int]:
    """Count the bytes of a module that are streamed, or would be.

    Args:
        module (`nn.Module`): The module.
        storage_dtype (`torch.dtype`, *optional*): Data type that its castable weights will be stored in.

    Returns:
        `dict[str, int]`: By block.
    """
    stream = stream_of(module)
    if stream is not None:
        return {block.name: block.size for block in stream.blocks}
    blocks = streamable_blocks(module)
    cast = castable_weights(module) if storage_dtype is not None else set()
    sizes = {}
    for name, slots in (split_weights(module, blocks)[0] if blocks else {}).items():
        each = [slot.tensor for slot in slots]
        stored = storage_dtype.itemsize if storage_dtype else 0
        sizes[name] = sum(t.numel() * stored if id(t) in cast else stored_bytes(t) for t in each)
    return sizes


def source_folders(files: Mapping[str, StoredTensor], blocks: Sequence[StreamedBlock]) -> set[Path]:
    """Return the folders that a module is streamed from, to which nothing may be saved."""
    paths = {tensor.path for tensor in files.values()} | {p.path for block in blocks for p in block.pieces}
    return {path.resolve().parent for path in paths}
