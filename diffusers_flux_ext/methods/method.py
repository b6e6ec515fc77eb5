"""The record of a method, from which lists of methods are derived. It imports neither torch nor diffusers."""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..demand import Demand


@dataclass(frozen=True)
class Release:
    """The released weights of a method, for plans from sizes alone (`flux-ext plan`).

    Attributes:
        name (`str`): Its name on the command line.
        about (`str`): What it is, in a few words.
        modules (`Mapping[str, str]`):
            Its modules by name. Each value names what makes the module, as `".file:name"` relative to the method's
            folder.
        transformer (`Mapping[str, Any]`): Entries of the transformer's config that it changes.
        counts (`str`, *optional*): What its number counts; `None` if it takes no number.
        count (`int`): Default of that number.
        demand (`Callable[[int], Demand]`): Maps that number to the demand.
    """

    name: str
    about: str
    modules: Mapping[str, str] = field(default_factory=dict)
    transformer: Mapping[str, Any] = field(default_factory=dict)
    counts: str | None = None
    count: int = 1
    demand: Callable[[int], Demand] = lambda number: Demand()

    @property
    def counted(self) -> str:
        """The default count in words, such as `"3 entities"` or `"1 reference"`; empty if it takes no number."""
        if self.counts is None:
            return ""
        return f"{self.count} {self.counts.removesuffix('s') if self.count == 1 else self.counts}"


@dataclass(frozen=True)
class Trainable:
    """A module of a method that can be trained. References name an object as `".file:name"`, see [`resolve`].

    Attributes:
        module (`str`): Its class, one with a config: diffusers' `ModelMixin` and `ConfigMixin`.
        make (`str`):
            Makes an untrained one: a function that takes the transformer, and sizes as arguments that are given by
            keyword only (`def make(transformer, *, num_tokens=4)`).
        files (`str`, *optional*):
            Spells its weights as the method's published files do: a function that takes the module and its state dict
            and returns state dicts by file name. By default there is one file with the module's own names.
    """

    module: str
    make: str
    files: str | None = None


@dataclass(frozen=True)
class Addition:
    """What a method adds to a loaded pipeline. References name an object as `".file:name"`, see [`resolve`].

    Attributes:
        module (`str`): The class of the module that is added.
        add (`str`): A function that takes the pipeline and the module.
        remove (`str`): A function that takes the pipeline, and leaves it as it was before.
    """

    module: str
    add: str
    remove: str


@dataclass(frozen=True)
class Method:
    """One method: a folder and what it offers.

    Attributes:
        package (`str`): The folder as a package, `__name__` in its `__init__.py`.
        name (`str`): Its published name.
        about (`str`): What it is for, in a few words.
        state (`str`): What its results were compared with.
        page (`str`): Its page in `docs/`, without the suffix; read in this repository only.
        exports (`Mapping[str, Sequence[str]]`):
            Public names by file of the folder. Conditions stand in the file `"condition"`, where training looks for
            them; names of pipelines end in `Pipeline`.
        loadable (`Sequence[str]`): Public classes with `save_pretrained` that do not derive from diffusers' classes.
        converters (`Mapping[str, str]`):
            Commands that convert its published files, by the name after `flux-ext convert`: `".file:name"` of a
            function that takes the arguments and returns the exit code.
        releases (`Sequence[Release]`): Its released weights.
        trains (`Mapping[str, Trainable]`): Its modules that can be trained, by name.
        loaders (`Mapping[str, str]`):
            What loads the published files of a class that cannot load them itself, by the class; both are references,
            such as `{"diffusers:ReduxImageEncoder": ".checkpoint:load_redux_embedder"}`. A class or a function, which
            takes a path and `torch_dtype`, or the path alone.
        additions (`Mapping[str, Addition]`): What it adds to a loaded pipeline, by the name in a job.
    """

    package: str
    name: str
    about: str
    state: str
    page: str
    exports: Mapping[str, Sequence[str]]
    loadable: Sequence[str] = ()
    converters: Mapping[str, str] = field(default_factory=dict)
    releases: Sequence[Release] = ()
    trains: Mapping[str, Trainable] = field(default_factory=dict)
    loaders: Mapping[str, str] = field(default_factory=dict)
    additions: Mapping[str, Addition] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name of the folder, which is also the name for `custom_pipeline`."""
        return self.package.rpartition(".")[2]

    @property
    def public_names(self) -> list[str]:
        """What the method exports."""
        return [name for names in self.exports.values() for name in names]

    @property
    def pipelines(self) -> list[str]:
        """Its pipeline classes."""
        return [name for name in self.public_names if name.endswith("Pipeline")]

    @property
    def references(self) -> list[str]:
        """Everything that the record refers to."""
        found = list(self.converters.values())
        found += [reference for release in self.releases for reference in release.modules.values()]
        trained = [reference for each in self.trains.values() for reference in (each.module, each.make, each.files)]
        added = [reference for each in self.additions.values() for reference in (each.module, each.add, each.remove)]
        return [*found, *filter(None, trained), *self.loaders, *self.loaders.values(), *added]

    def modules(self, release: Release) -> dict[str, Any]:
        """Return what makes the modules of a release, by the modules' names."""
        return {name: resolve(self.package, reference) for name, reference in release.modules.items()}

    def shim(self) -> str | None:
        """Return path of the file for `custom_pipeline=`, or `None` for a method without a pipeline of its own."""
        package = importlib.import_module(self.package)
        path = os.path.join(os.path.dirname(os.path.abspath(str(package.__file__))), f"dfx_{self.folder}.py")
        return path if os.path.isfile(path) else None


def resolve(package: str, reference: str) -> Any:
    """Return what `".file:name"` names, seen from a package.

    Args:
        package (`str`): The package.
        reference (`str`): A module, relative or absolute, and a name in it.

    Returns:
        `Any`

    Raises:
        ValueError: if it is not a module and a name.
        AttributeError: if the module does not define the name.
    """
    module, _, name = reference.partition(":")
    if not module or not name:
        raise ValueError(
            f"The record of `{package}` has the reference {reference!r}; expected a module and a name in it, such as "
            f"'.model:MyModel' or 'diffusers:ReduxImageEncoder'."
        )
    found = importlib.import_module(module, package)
    if not hasattr(found, name):
        raise AttributeError(
            f"The record of `{package}` has the reference {reference!r}, but `{found.__name__}` does not define "
            f"`{name}`. Correct the reference."
        )
    return getattr(found, name)
