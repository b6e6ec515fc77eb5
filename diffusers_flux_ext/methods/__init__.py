"""One folder per method. `METHODS` is the only list of them: all other lists are derived from the records.

To add a method, write its folder and name the folder in `_FOLDERS`; a package of its own calls [`register_method`].
"""

import importlib

from .._registration import BASES, register
from .method import Addition, Method, Release, Trainable, resolve


# In the order of the documentation.
_FOLDERS = (
    "eligen",
    "control",
    "infinite_you",
    "inpaint",
    "ip_adapter",
    "attribute_control",
    "lora_encoder",
    "lora_fusion",
    "nexus_gen",
    "references",
    "fill",
    "flex",
    "redux",
    "insert_anything",
    "step1x_edit",
)

METHODS: dict[str, Method] = {}


def add(method: Method) -> Method:
    """Add a method to the list.

    Args:
        method (`Method`): Its record.

    Returns:
        `Method`: the same.

    Raises:
        ValueError: if its folder, or a name that it exports, releases, trains or adds is taken by another method.
    """
    if method.folder in METHODS:
        raise ValueError(
            f"The method {method.name!r} is in a folder named {method.folder!r}, and so is one of "
            f"`{METHODS[method.folder].package}`. Choose another name."
        )
    for what in ("public_names", "releases", "trains", "additions"):
        own = _names(method, what)
        taken = {name for other in METHODS.values() for name in _names(other, what)}
        twice = sorted(taken.intersection(own) | {name for name in own if own.count(name) > 1})
        if twice:
            raise ValueError(f"`{what}` of the method {method.name!r}: {twice} exist already. Choose other names.")
    METHODS[method.folder] = method
    return method


def _names(method: Method, what: str) -> list[str]:
    return [getattr(each, "name", each) for each in getattr(method, what)]


def register_method(method: Method) -> Method:
    """Add a method of another package, so that `flux-ext plan`, `custom_pipeline` and diffusers know it.

    Args:
        method (`Method`): Its record; see [`Method`].

    Returns:
        `Method`: the same.

    Raises:
        AttributeError: if a file of the method lacks a name that the record exports or refers to.
        ValueError: if a method or a public name of this name exists already, or a reference is malformed.
    """
    for file, names in method.exports.items():
        module = importlib.import_module(f".{file}", method.package)
        missing = [name for name in names if not hasattr(module, name)]
        if missing:
            raise AttributeError(
                f"The method {method.name!r} exports {missing}, which `{module.__name__}` does not define. Correct "
                f"`exports`."
            )
    for reference in method.references:
        resolve(method.package, reference)
    add(method)
    # diffusers looks classes up in the outermost package of the module that defines them, and with them the base
    # classes that say how they are loaded.
    package = importlib.import_module(method.package.partition(".")[0])
    found = {name: find(method, name) for name in method.public_names}
    found |= {name: getattr(importlib.import_module("diffusers"), name) for name in BASES}
    for name, value in found.items():
        if not hasattr(package, name):
            setattr(package, name, value)
    register(package, method.pipelines, method.loadable)
    return method


def find(method: Method, name: str) -> object:
    """Import a public object of a method.

    Args:
        method (`Method`): The method.
        name (`str`): One of its public names.

    Returns:
        `object`
    """
    file = next(file for file, names in method.exports.items() if name in names)
    return getattr(importlib.import_module(f".{file}", method.package), name)


for _folder in _FOLDERS:
    add(importlib.import_module(f".{_folder}", __name__).METHOD)

__all__ = ["METHODS", "Addition", "Method", "Release", "Trainable", "register_method"]
