"""Reading a model from a state dict or one safetensors file in any key layout."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from .config import check_fit
from .gguf_files import is_gguf
from .hub import HUB_ARGUMENTS, local_file
from .layouts import Shapes, TensorRecipe, TransformerLayout
from .messages import naming
from .modules import check_floating
from .quantised import load_quantised
from .reading import check_state_dict, open_safetensors
from .sizes import build_empty
from .tensors import COMPUTED, tensors_of, tensors_of_mapping


ModelT = TypeVar("ModelT", bound="SingleFileMixin")


class SingleFileMixin:
    """Gives a model `from_state_dict` and `from_single_file`; the model plans the load from names and shapes."""

    @classmethod
    @abstractmethod
    def plan_load(
        cls, shapes: Shapes, overrides: Mapping[str, Any]
    ) -> tuple[dict[str, TensorRecipe], dict[str, Any], TransformerLayout]:
        """Plan how a file's tensors become the model's.

        Args:
            shapes (`Mapping[str, Sequence[int]]`): Shapes by key, in any layout.
            overrides (`Mapping[str, Any]`): Arguments of the constructor that replace inferred ones.

        Returns:
            `tuple`: a recipe for each key of the model, the constructor's arguments and the layout.

        Raises:
            ValueError: If keys are unknown or missing; if shapes do not fit together.
            TypeError: If an override is not an argument of the constructor.
        """

    @classmethod
    def own_keys(cls, keys: Iterable[str]) -> Mapping[str, str]:
        """Select the keys of a file that this model reads; all of them unless a class says otherwise.

        Args:
            keys (`Iterable[str]`): All keys of the file.

        Returns:
            `Mapping[str, str]`: The keys by what [`plan_load`] knows them as.
        """
        return {key: key for key in keys}

    @classmethod
    def from_state_dict(
        cls: type[ModelT],
        state_dict: Mapping[str, torch.Tensor],
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        **overrides: Any,
    ) -> ModelT:
        """Make a model from weights in any layout; the config follows from their shapes.

        Args:
            state_dict (`Mapping[str, torch.Tensor]`):
                Weights in any layout that the class reads. They are copied: neither the mapping nor its tensors are
                changed, now or later.
            torch_dtype (`torch.dtype`, *optional*):
                Dtype of the model; that of each tensor by default.
            device (`str` or `torch.device`, *optional*):
                Device of the model; that of each tensor by default.
            overrides:
                Arguments of the constructor that replace inferred ones. `axes_dims_rope` cannot be read from the
                weights and is needed unless the heads are 128 wide.

        Returns:
            the model, in eval mode.

        Raises:
            ValueError: If keys are unknown or missing; if shapes do not fit together; if `axes_dims_rope` is needed.
            TypeError: If an override is not an argument of the constructor.
        """
        check_state_dict(state_dict)
        tensors = tensors_of_mapping(state_dict).without_scales()
        tensors = tensors.select(cls.own_keys(tensors.shapes))
        check_floating(tensors.dtypes)
        dtype = torch_dtype or (COMPUTED if tensors.is_scaled else None)
        return cls._from_tensors(tensors.shapes, tensors.read, overrides, dtype, device)

    @classmethod
    def from_single_file(
        cls: type[ModelT],
        pretrained_model_link_or_path_or_dict: str | Path | Mapping[str, torch.Tensor],
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        quantization_config: Any = None,
        config: str | Path | None = None,
        subfolder: str | None = None,
        **overrides: Any,
    ) -> ModelT:
        """Make a model from one safetensors or GGUF file in any layout.

        Only the header is read to plan the load. Tensors are then copied one at a time out of the mapped file, whose
        pages the system can drop again, so that the load needs the memory of the model once.

        Args:
            pretrained_model_link_or_path_or_dict (`str`, `Path` or `Mapping[str, torch.Tensor]`):
                Path of a safetensors or GGUF file, whatever its suffix (`.safetensors`, `.sft`, `.gguf`), or a link to
                one on the Hub. A mapping goes to [`from_state_dict`].
            torch_dtype (`torch.dtype`, *optional*):
                Dtype of the model; by default that of each tensor of the file, or bfloat16 for weights in 8 bits with
                scales beside them (`scale_weight`, `weight_scale`).
            device (`str` or `torch.device`, *optional*):
                Device of the model; CPU by default.
            dtype (`torch.dtype`, *optional*):
                The newer name of `torch_dtype`.
            quantization_config (`diffusers.QuantizationConfigMixin`, *optional*):
                Quantise while loading, as diffusers' `from_single_file` does; a GGUF file needs
                `GGUFQuantizationConfig(compute_dtype=...)`.
            config (`str` or `Path`, *optional*):
                A folder or repository whose config replaces the inferred one.
            subfolder (`str`, *optional*):
                The config's subfolder, such as `"transformer"`.
            overrides:
                See [`from_state_dict`]; and `cache_dir`, `force_download`, `local_files_only`, `token` and `revision`
                for links.

        Returns:
            the model, in eval mode.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is neither a safetensors nor a GGUF file; if keys are unknown or missing; if shapes
                do not fit together; if `axes_dims_rope` is needed.
            TypeError: If an override is not an argument of the constructor.
        """
        hub = {name: overrides.pop(name) for name in HUB_ARGUMENTS if name in overrides}
        source = pretrained_model_link_or_path_or_dict
        if not isinstance(source, Mapping):
            source = local_file(source, hub)
        if config is not None:
            overrides = {**cls._read_config(config, subfolder, hub), **overrides}
        if quantization_config is not None:
            return load_quantised(cls, source, quantization_config, dtype or torch_dtype, device, overrides)
        if is_gguf(source):
            raise ValueError(
                f"`{source}` is a GGUF file, whose weights stay quantised. Pass "
                f"`quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16)`, which diffusers has."
            )
        arguments: dict[str, Any] = {"torch_dtype": dtype or torch_dtype, "device": device, **overrides}
        if isinstance(source, Mapping):
            return cls.from_state_dict(source, **arguments)
        with naming(source), open_safetensors(source) as reader:
            tensors = tensors_of(reader).without_scales()
            tensors = tensors.select(cls.own_keys(tensors.shapes))
            check_floating(tensors.dtypes)
            dtype = arguments["torch_dtype"] or (COMPUTED if tensors.is_scaled else None)
            return cls._from_tensors(tensors.shapes, tensors.read, overrides, dtype, arguments["device"])

    @classmethod
    def _read_config(cls, config: str | Path, subfolder: str | None, hub: Mapping[str, Any]) -> dict[str, Any]:
        # The revision is that of the weights, in another repository.
        hub = {name: value for name, value in hub.items() if name != "revision"}
        model_class: Any = cls
        loaded = model_class.load_config(config, subfolder=subfolder, **hub)
        return {name: value for name, value in loaded.items() if not name.startswith("_")}

    @classmethod
    def _from_tensors(
        cls: type[ModelT],
        shapes: Shapes,
        read: Callable[[str], torch.Tensor],
        overrides: Mapping[str, Any],
        dtype: torch.dtype | None,
        device: str | torch.device | None,
    ) -> ModelT:
        plan, config, layout = cls.plan_load(shapes, overrides)
        model: Any = build_empty(cls, config)
        check_fit(model, plan, layout)
        weights = {
            # A copy, since a tensor may be a view of the source or of a mapped file.
            key: recipe.build(read).to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
            for key, recipe in plan.items()
        }
        model.load_state_dict(weights, assign=True)
        return model.eval()
