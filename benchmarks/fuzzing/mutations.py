"""The mutations of a file, chosen by its suffix."""

from __future__ import annotations

from pathlib import Path
from random import Random

from .jsons import edit_json
from .pickles import PICKLES
from .raw import RAW, Mutation
from .safetensors_files import SAFETENSORS


BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    ".safetensors": SAFETENSORS,
    ".sft": SAFETENSORS,
    ".bin": PICKLES,
    ".pt": PICKLES,
    ".pth": PICKLES,
    ".json": (edit_json,),
}


def mutate(data: bytes, path: Path, seed: int, added: tuple[Mutation, ...] = ()) -> tuple[bytes, str]:
    """Change a valid file.

    Args:
        data (`bytes`): The file.
        path (`Path`): Its name, whose suffix says what it holds.
        seed (`int`): Which mutation; the same seed gives the same file.
        added (`tuple`, *optional*): Mutations besides those of the suffix.

    Returns:
        `tuple[bytes, str]`: the changed file, and the names of the mutations.
    """
    rng = Random(seed)
    own = (*BY_SUFFIX[path.suffix], *added)
    chosen = [rng.choice(own if rng.random() < 0.75 else RAW)]
    if rng.random() < 0.15:
        chosen.append(rng.choice(RAW))
    for mutation in chosen:
        data = mutation(data, rng)
    return data, " + ".join(mutation.__name__ for mutation in chosen)
