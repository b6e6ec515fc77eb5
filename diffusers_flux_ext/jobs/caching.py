"""The caches of steps that a job may name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import diffusers

from ..caches.tea_cache import TeaCacheConfig, apply_tea_cache, remove_tea_cache
from ..validation import nearest
from .errors import JobError, Problem
from .sections import CacheSection


_CALLBACK = "current_timestep_callback"
_LAYERS = ("transformer_blocks.*attn", "single_transformer_blocks.*attn")
# The config of each cache, and options without which it does nothing for FLUX.1.
_CACHES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "first_block": ("FirstBlockCacheConfig", {}),
    "mag": ("MagCacheConfig", {}),
    "taylor_seer": ("TaylorSeerCacheConfig", {}),
    "pyramid_attention": ("PyramidAttentionBroadcastConfig", {}),
    "faster": (
        "FasterCacheConfig",
        {"is_guidance_distilled": True, "spatial_attention_block_identifiers": _LAYERS},
    ),
}


def cache_config(section: CacheSection, pipe: Any = None) -> Any:
    """Return the config of a cache.

    Args:
        section (`CacheSection`): The cache.
        pipe (`FluxPipeline`, *optional*): Tells caches that ask for it where the loop is.

    Returns:
        `Any`: a `TeaCacheConfig`, or a config of diffusers.

    Raises:
        JobError: if an option is not known, missing or out of range.
    """
    name, own = _CACHES.get(section.name, ("", {}))
    kind: Any = getattr(diffusers, name) if name else TeaCacheConfig
    known = {each.name for each in fields(kind) if each.init} - {_CALLBACK}
    unknown = [option for option in section.options if option not in known]
    if unknown:
        raise JobError(
            [Problem(f"memory.cache.{option}", f"is not known{nearest(option, known)}") for option in unknown]
        )
    options = {option: tuple(value) if isinstance(value, list) else value for option, value in section.options.items()}
    if any(each.name == _CALLBACK for each in fields(kind)):
        options[_CALLBACK] = lambda: pipe.current_timestep
    try:
        return kind(**{**own, **options})
    except (TypeError, ValueError) as error:
        raise JobError.of("memory.cache", f"the cache {section.name!r} cannot be made: {error}".rstrip(".")) from error


@contextmanager
def running_with(section: CacheSection | None, pipe: Any) -> Iterator[None]:
    """Run calls of a pipeline with a cache, which is gone afterwards.

    Args:
        section (`CacheSection`, *optional*): The cache; none leaves the pipeline as it is.
        pipe (`FluxPipeline`): The pipeline.
    """
    if section is None:
        yield
        return
    config, transformer = cache_config(section, pipe), pipe.transformer
    if isinstance(config, TeaCacheConfig):
        apply_tea_cache(transformer, config)
    else:
        transformer.enable_cache(config)
    try:
        yield
    finally:
        if isinstance(config, TeaCacheConfig):
            remove_tea_cache(transformer)
        else:
            transformer.disable_cache()
