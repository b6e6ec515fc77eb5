"""Make diffusers aware of this package, without importing diffusers.

Two registrations are needed so that a saved pipeline reloads through `DiffusionPipeline.from_pretrained`: the package
as a component library, and the pipeline classes as attributes of `diffusers`. Both are applied at once when diffusers
is already imported, and otherwise right after its import, so that importing this package stays quick.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


LOADING_UTILS = "diffusers.pipelines.pipeline_loading_utils"
# Base classes of the package's components.
LOADABLE = ("ModelMixin", "SchedulerMixin", "QwenVLProcessor")
# Those of them that are diffusers' own, which every component library has to offer.
BASES = LOADABLE[:2]


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls `action(module)` once the module `name` has been executed by its own loader."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name, self.action = name, action
        self.searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module with the other finders; a mere lookup without an import must not use this finder up."""
        if fullname != self.name or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            self._append_action(spec.loader)
        return spec

    def _append_action(self, loader: importlib.abc.Loader) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.action(sys.modules[self.name])
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        loader.exec_module = exec_module  # type: ignore[method-assign]


def _when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    module = sys.modules.get(name)
    if module is None:
        sys.meta_path.insert(0, _AfterImport(name, action))
    else:
        action(module)


def _resolve_lazily(module: ModuleType, names: Sequence[str], package: ModuleType) -> None:
    def resolve(name: str) -> Any:
        if name in names:
            return getattr(package, name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    module.__getattr__ = resolve  # type: ignore[method-assign]


def register(package: ModuleType, pipeline_names: Sequence[str], loadable: Sequence[str] = ()) -> None:
    """Register `package` as a component library and its pipelines as lazy attributes of diffusers. Idempotent.

    Args:
        package (`ModuleType`):
            The package whose attributes are the component classes; it must offer `ModelMixin` and `SchedulerMixin`.
        pipeline_names (`Sequence[str]`):
            Names of the pipeline classes, resolved on `package` at first use.
        loadable (`Sequence[str]`, *optional*):
            Names of classes with `save_pretrained` and `from_pretrained`, beside the base classes of diffusers.
    """
    load_methods = dict.fromkeys((*BASES, *loadable), ["save_pretrained", "from_pretrained"])

    def add_library(loading_utils: ModuleType) -> None:
        loading_utils.LOADABLE_CLASSES.setdefault(package.__name__, {}).update(load_methods)
        # diffusers saves by the table above and loads by this one, which it merges from all libraries beforehand.
        for name, methods in load_methods.items():
            loading_utils.ALL_IMPORTABLE_CLASSES.setdefault(name, methods)

    def add_pipelines(diffusers: ModuleType) -> None:
        if not hasattr(diffusers, "_class_to_module"):
            # DIFFUSERS_SLOW_IMPORT=1 makes diffusers an ordinary module.
            _resolve_lazily(diffusers, pipeline_names, package)
            return
        # diffusers resolves its own lazy names as submodules, so the package stands in as one.
        sys.modules[f"{diffusers.__name__}.{package.__name__}"] = package
        diffusers._class_to_module.update(dict.fromkeys(pipeline_names, package.__name__))

    _when_imported(LOADING_UTILS, add_library)
    _when_imported("diffusers", add_pipelines)
