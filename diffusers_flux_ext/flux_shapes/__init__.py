"""The world of coloured shapes that the embedded tiny FLUX.1 draws: scenes, images, captions, masks and a scorer.

Needs numpy and pillow only. Everything random takes a `random.Random`, so that a seed fixes it.

```py
>>> from diffusers_flux_ext import flux_shapes

>>> scene = flux_shapes.held_out_entity_scenes(1)[0]
>>> image, masks = flux_shapes.render(scene), flux_shapes.entity_masks(scene)
>>> flux_shapes.score_entities(image, scene, masks)
[EntityScore(color=True, shape=True), EntityScore(color=True, shape=True)]
```
"""

from .captions import background_caption, caption, entity_phrase, entity_prompts, vary
from .detection import DetectedObject, detect_background, detect_objects
from .masks import box_to_mask, entity_boxes, entity_masks, sample_boxes, token_mask
from .palette import ALL_SHAPES, BACKGROUNDS, CANVAS_SIZE, COLORS, SHAPES, SIZES, STYLES
from .rendering import render, render_outlines
from .sampling import held_out_entity_scenes, iterate_scenes, sample_free_scene, sample_scene
from .scene import LAYOUTS, PLACES, Scene, ShapeObject, is_held_out
from .scoring import (
    EntityScore,
    ObjectScore,
    SceneScore,
    measure_brightness,
    score_entities,
    score_scene,
    summarize_entities,
    summarize_scenes,
)


__all__ = [
    "ALL_SHAPES",
    "BACKGROUNDS",
    "CANVAS_SIZE",
    "COLORS",
    "LAYOUTS",
    "PLACES",
    "SHAPES",
    "SIZES",
    "STYLES",
    "DetectedObject",
    "EntityScore",
    "ObjectScore",
    "Scene",
    "SceneScore",
    "ShapeObject",
    "background_caption",
    "box_to_mask",
    "caption",
    "detect_background",
    "detect_objects",
    "entity_boxes",
    "entity_masks",
    "entity_phrase",
    "entity_prompts",
    "held_out_entity_scenes",
    "is_held_out",
    "iterate_scenes",
    "measure_brightness",
    "render",
    "render_outlines",
    "sample_boxes",
    "sample_free_scene",
    "sample_scene",
    "score_entities",
    "score_scene",
    "summarize_entities",
    "summarize_scenes",
    "token_mask",
    "vary",
]
