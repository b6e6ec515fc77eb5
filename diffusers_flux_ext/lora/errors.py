"""What can be wrong with a LoRA file."""

from collections.abc import Sequence

from ..checkpoints.layouts import list_keys


class LoRAError(ValueError):
    """A LoRA file that cannot be read, converted or applied. The message says why and what to do."""


class UnknownLoRAKeysError(LoRAError):
    """
    Keys that no known layout of a FLUX.1 LoRA spells.

    Args:
        keys (`Sequence[str]`):
            The keys; the message lists up to ten.
        total (`int`):
            How many keys the file has.
        closest (`str`, *optional*):
            The known format that the rest of the file looks like.
    """

    def __init__(self, keys: Sequence[str], total: int, closest: str | None = None) -> None:
        self.keys = tuple(keys)
        like = f" The others look like the format {closest!r}." if closest else ""
        super().__init__(
            f"{len(keys)} of {total} keys are not understood: {list_keys(keys)}.{like} They may belong to a model "
            "other than FLUX.1. Pass `strict=False` to leave them out."
        )


class ForeignLoRAError(LoRAError):
    """A LoRA for another model family than FLUX.1, or one that is no static update of weights."""


class UnsupportedLoRAError(LoRAError):
    """A valid LoRA with parts that the target format cannot hold."""
