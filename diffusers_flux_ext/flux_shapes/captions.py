"""Scenes as text."""

import random

from .scene import FREE, Scene, ShapeObject


_WHERE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the middle",
}


def entity_phrase(item: ShapeObject) -> str:
    """Return an object as a phrase, such as `"a red circle"`, `"a small orange star"` or `"a striped blue cross"`.

    Args:
        item (`ShapeObject`): The object.

    Returns:
        `str`
    """
    style = "" if item.style == "plain" else item.style
    words = " ".join(word for word in (item.size, style, item.color, item.shape) if word)
    return f"an {words}" if words[0] == "o" else f"a {words}"


def entity_prompts(scene: Scene) -> list[str]:
    """Return the phrases of all objects, in the scene's order.

    Args:
        scene (`Scene`): The scene.

    Returns:
        `list[str]`
    """
    return [entity_phrase(item) for item in scene.objects]


def caption(scene: Scene, rng: random.Random) -> str:
    """Describe a whole scene in a sentence of varying wording.

    Args:
        scene (`Scene`): The scene.
        rng (`random.Random`): Chooses the wording.

    Returns:
        `str`: for example `"a red circle above a blue star, white background"`; free scenes are listed without places.
    """
    comma, on = f", {scene.background} background", f" on a {scene.background} background"
    if scene.layout == "single":
        return _single(scene) + rng.choice([on, on, comma])
    if scene.layout == "pos":
        return f"{_single(scene)} {_WHERE[scene.objects[0].place]}" + rng.choice([comma, on])
    end = comma if rng.random() < 0.7 else on
    if scene.layout == "two":
        beside = scene.objects[0].place == "left"
        return (_beside(scene, rng.random()) if beside else _above(scene, rng.random())) + end
    return _listed(scene, rng) + end


def background_caption(scene: Scene) -> str:
    """Return a sentence that names the background only.

    Args:
        scene (`Scene`): The scene.

    Returns:
        `str`
    """
    return f"a {scene.background} background"


def vary(text: str, rng: random.Random) -> str:
    """Sometimes capitalise a text or add a full stop, as users do.

    Args:
        text (`str`): A caption.
        rng (`random.Random`): Chooses.

    Returns:
        `str`
    """
    if rng.random() < 0.15:
        text = text[:1].upper() + text[1:]
    return text + "." if rng.random() < 0.1 else text


def _single(scene: Scene) -> str:
    return entity_phrase(scene.objects[0])


def _listed(scene: Scene, rng: random.Random) -> str:
    phrases = entity_prompts(scene)
    if scene.layout == FREE:
        rng.shuffle(phrases)
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _beside(scene: Scene, draw: float) -> str:
    left, right = entity_prompts(scene)
    if draw < 0.55:
        return f"{left} on the left and {right} on the right"
    if draw < 0.75:
        return f"{right} on the right and {left} on the left"
    return f"{left} to the left of {right}" if draw < 0.9 else f"{right} to the right of {left}"


def _above(scene: Scene, draw: float) -> str:
    top, bottom = entity_prompts(scene)
    if draw < 0.3:
        return f"{top} at the top and {bottom} at the bottom"
    return f"{top} above {bottom}" if draw < 0.8 else f"{bottom} below {top}"
