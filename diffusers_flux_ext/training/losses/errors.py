"""How far a predicted velocity is from its target, per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..choices import Number, check_names, choose


_SCALE = Number(0.1, 0, 1e3, open_low=True)
_FLOOR = Number(0.0, 0, 1)


def _constant(scale: float, sigma: torch.Tensor) -> torch.Tensor:
    return torch.full_like(sigma, scale)


def _exponential(scale: float, sigma: torch.Tensor) -> torch.Tensor:
    return scale**sigma


def _snr(scale: float, sigma: torch.Tensor) -> torch.Tensor:
    return (1 - scale) * (1 - sigma) ** 2 + scale


SCHEDULES = {"constant": _constant, "exponential": _exponential, "snr": _snr}
ERRORS = {"mse": ("floor",), "huber": ("floor", "scale", "schedule")}


@dataclass(frozen=True)
class Errors:
    """An error by name; made by [`errors`].

    Args:
        name (`str`, defaults to `"mse"`): `"mse"` or `"huber"`.
        scale (`float`, defaults to 0.1): Of Huber: differences well above it count linearly.
        schedule (`str`, defaults to `"constant"`): Of Huber: how its scale depends on the noise level.
        floor (`float`, defaults to 0.0): The smallest weight that a mask gives to a token.
    """

    name: str = "mse"
    scale: float = 0.1
    schedule: str = "constant"
    floor: float = 0.0

    def __call__(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        sigma: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the error of each sample, computed in float32 or in a wider data type of the inputs.

        Args:
            prediction (`torch.Tensor` of shape `(batch_size, length, channels)`): The predicted velocity.
            target (`torch.Tensor` of the same shape): Noise minus latents.
            sigma (`torch.Tensor` of shape `(batch_size,)`): Noise levels in [0, 1].
            mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*):
                Weights `m` of the tokens in [0, 1], raised to `floor`: `sum(m * error) / sum(m)`. A sample whose
                weights are all zero has the error 0.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`, float32 or wider.

        Raises:
            ValueError: if the shapes do not fit.
        """
        _check_shapes(prediction, target, sigma, mask)
        wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
        difference = prediction.to(wide) - target.to(wide)
        if self.name == "mse":
            values = difference.pow(2)
        else:
            scale = SCHEDULES[self.schedule](self.scale, sigma.to(wide))[:, None, None]
            values = _pseudo_huber(difference.pow(2), scale)
        if mask is None:
            return values.mean(dim=(1, 2))
        weights = mask.to(wide).clamp(min=self.floor)
        smallest = torch.finfo(wide).tiny
        return (weights * values.mean(dim=2)).sum(dim=1) / weights.sum(dim=1).clamp(min=smallest)


def _pseudo_huber(squares: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    # The root minus the scale would lose all digits of small differences.
    return 2 * scale * squares / ((squares + scale**2).sqrt() + scale)


def _check_shapes(
    prediction: torch.Tensor, target: torch.Tensor, sigma: torch.Tensor, mask: torch.Tensor | None
) -> None:
    size = tuple(prediction.shape)
    if len(size) != 3 or target.shape != size or sigma.shape != size[:1]:
        raise ValueError(
            f"`prediction` and `target` must have one shape (batch_size, length, channels) and `sigma` the shape "
            f"(batch_size,), got {size}, {tuple(target.shape)} and {tuple(sigma.shape)}."
        )
    if mask is not None and mask.shape != size[:2]:
        raise ValueError(f"`mask` must have the shape (batch_size, length) = {size[:2]}, got {tuple(mask.shape)}.")


def errors(name: str = "mse", **options: Any) -> Errors:
    """Choose an error.

    `"mse"` is the mean squared difference. `"huber"` is the pseudo-Huber loss `2 * c * (sqrt(d ** 2 + c ** 2) - c)` of
    the differences `d`, which is `d ** 2` for small ones and linear for large ones, so that outliers count less.

    Args:
        name (`str`, defaults to `"mse"`): `"mse"` or `"huber"`.
        options:
            `floor` (0.0 to 1.0, by default 0.0): the smallest weight that a mask gives to a token. Of `"huber"`:
            `scale` (by default 0.1) and `schedule`, how `c` depends on the noise level: `"constant"`: `scale`;
            `"exponential"`: `scale ** sigma`; `"snr"`: `(1 - scale) * (1 - sigma) ** 2 + scale`. The last two are 1
            without noise.

    Returns:
        `Errors`: a function of prediction, target, noise levels and mask.

    Raises:
        ValueError: if a name is not known or a number is out of range.
    """
    check_names(options, choose(ERRORS, name, "error"), f"the error {name!r}")
    made = Errors(name, **options)
    _SCALE.check("scale", made.scale)
    _FLOOR.check("floor", made.floor)
    choose(SCHEDULES, made.schedule, "schedule of the scale")
    return made
