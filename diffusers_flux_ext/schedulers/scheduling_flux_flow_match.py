"""Flow matching on DiffSynth-Studio's FLUX.1 time grid, as a drop-in for `FlowMatchEulerDiscreteScheduler`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..checkpoints.stock_config import StockConfigMixin


# diffusers looks up `SchedulerMixin` in the module that defines a saved scheduler.
__all__ = ["FluxFlowMatchScheduler", "SchedulerMixin"]

# The last noise level before the shift, a constant of DiffSynth-Studio's `set_timesteps_flux`.
DIFFSYNTH_SIGMA_MIN = 0.003 / 1.002
BASE_GRIDS = ("diffsynth", "diffusers")


class FluxFlowMatchScheduler(StockConfigMixin, FlowMatchEulerDiscreteScheduler):
    r"""Euler scheduler for FLUX.1 with the time grid of DiffSynth-Studio, denoising strength and training weights.

    With the default arguments the grid is `linspace(1, 0.003 / 1.002, num_inference_steps)`, shifted by
    `shift * s / (1 + (shift - 1) * s)` with `shift=3` at every resolution, and a last step to zero. The noise levels
    equal those of DiffSynth-Studio's `FlowMatchScheduler("FLUX.1")`. With `base_grid="diffusers"` every schedule is
    [`~diffusers.FlowMatchEulerDiscreteScheduler`]'s own, bit for bit.

    `base_grid` decides only the grid *before* the shift, and only where the caller gives neither `sigmas` nor
    `timesteps`. All that follows (static or dynamic shift, terminal stretch, Karras, exponential or beta conversion)
    is diffusers' code under either grid.

    Stock pipelines always pass `sigmas=linspace(1, 1 / n, n)`, so that under them this scheduler shifts *those* by its
    `shift`. Give them the grid by `pipe(..., sigmas=pipe.scheduler.base_sigmas(n))`; for image-to-image with
    DiffSynth's meaning of strength, `pipe(..., strength=1.0, sigmas=pipe.scheduler.base_sigmas(n, strength))`.

    [`from_config`] and [`from_pretrained`] on the config of a stock scheduler keep its parameters but switch dynamic
    shifting off, because DiffSynth's grid has a static shift; pass `base_grid="diffusers"` (or
    `use_dynamic_shifting=True`) to keep it.

    Args:
        num_train_timesteps (`int`, defaults to 1000):
            Timesteps run from 0 to this number; `timesteps = sigmas * num_train_timesteps`.
        shift (`float`, defaults to 3.0):
            Static shift, above 0. Values above 1 spend more steps at high noise.
        use_dynamic_shifting (`bool`, defaults to `False`):
            Shift by the `mu` passed to [`set_timesteps`] instead of `shift`.
        base_shift (`float`, *optional*, defaults to 0.5):
            `mu` at `base_image_seq_len` tokens; read by pipelines.
        max_shift (`float`, *optional*, defaults to 1.15):
            `mu` at `max_image_seq_len` tokens; read by pipelines.
        base_image_seq_len (`int`, defaults to 256):
            Number of image tokens that uses `base_shift`.
        max_image_seq_len (`int`, defaults to 4096):
            Number of image tokens that uses `max_shift`.
        invert_sigmas (`bool`, defaults to `False`):
            Use `1 - sigmas`.
        shift_terminal (`float`, *optional*):
            Stretch the shifted grid so that it ends here.
        use_karras_sigmas (`bool`, defaults to `False`):
            Karras spacing between the ends of the grid.
        use_exponential_sigmas (`bool`, defaults to `False`):
            Exponential spacing between the ends of the grid.
        use_beta_sigmas (`bool`, defaults to `False`):
            Beta spacing between the ends of the grid; needs scipy.
        time_shift_type (`str`, defaults to `"exponential"`):
            Form of the dynamic shift, `"exponential"` or `"linear"`.
        stochastic_sampling (`bool`, defaults to `False`):
            Draw fresh noise at every step.
        base_grid (`str`, defaults to `"diffsynth"`):
            `"diffsynth"` or `"diffusers"`; see above.

    Raises:
        ValueError: If `base_grid` is unknown or `shift` is not above 0.
    """

    stock_class = FlowMatchEulerDiscreteScheduler

    _compatibles: list[str] = ["FlowMatchEulerDiscreteScheduler"]
    order = 1

    config: Any
    timesteps: Any
    sigmas: torch.Tensor

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 3.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: Literal["exponential", "linear"] = "exponential",
        stochastic_sampling: bool = False,
        base_grid: Literal["diffsynth", "diffusers"] = "diffsynth",
    ) -> None:
        if base_grid not in BASE_GRIDS:
            raise ValueError(f"`base_grid` is {base_grid!r}; expected one of {BASE_GRIDS}.")
        _check_shift(shift)
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            shift=shift,
            use_dynamic_shifting=use_dynamic_shifting,
            base_shift=base_shift,
            max_shift=max_shift,
            base_image_seq_len=base_image_seq_len,
            max_image_seq_len=max_image_seq_len,
            invert_sigmas=invert_sigmas,
            shift_terminal=shift_terminal,
            use_karras_sigmas=use_karras_sigmas,
            use_exponential_sigmas=use_exponential_sigmas,
            use_beta_sigmas=use_beta_sigmas,
            time_shift_type=time_shift_type,
            stochastic_sampling=stochastic_sampling,
        )
        self.hand_on_defaults()
        if base_grid == "diffsynth":
            self._set_training_grid()

    def _set_training_grid(self) -> None:
        # Like the base class, without the final zero: trainers index `timesteps` and `sigmas` in parallel.
        sigmas = _linear_grid(1.0, DIFFSYNTH_SIGMA_MIN, self.config.num_train_timesteps, 1.0)
        if not self.config.use_dynamic_shifting:
            sigmas = self.shift * sigmas / (1 + (self.shift - 1) * sigmas)
        self.sigmas = sigmas
        self.timesteps = sigmas * self.config.num_train_timesteps
        self.sigma_min, self.sigma_max = sigmas[-1].item(), sigmas[0].item()

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> FluxFlowMatchScheduler | tuple[FluxFlowMatchScheduler, dict[str, Any]]:
        """Make a scheduler from a config, its own or that of a `FlowMatchEulerDiscreteScheduler`.

        Args:
            config (`dict`):
                A scheduler config, such as `pipe.scheduler.config`. If it names no `base_grid` it is a stock config,
                and its `use_dynamic_shifting` is taken over only together with `base_grid="diffusers"`.
            return_unused_kwargs (`bool`, *optional*, defaults to `False`):
                Also return the keyword arguments that are not arguments of this class.
            kwargs:
                Entries that replace those of `config`.

        Returns:
            `FluxFlowMatchScheduler`, or a tuple of it and the unused keyword arguments.
        """
        if isinstance(config, dict) and "base_grid" not in config:
            if kwargs.get("base_grid", "diffsynth") == "diffsynth":
                kwargs.setdefault("use_dynamic_shifting", False)
            else:
                kwargs.setdefault("shift", config.get("shift", 1.0))
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def base_sigmas(self, num_inference_steps: int, denoising_strength: float = 1.0) -> list[float]:
        """Return the grid before the shift, to be passed as `sigmas` where a pipeline always passes its own.

        Args:
            num_inference_steps (`int`):
                Number of values, at least 1.
            denoising_strength (`float`, *optional*, defaults to 1.0):
                In (0, 1]. The grid starts at `sigma_min + (sigma_max - sigma_min) * denoising_strength` and keeps its
                number of steps.

        Returns:
            `list[float]`: Descending noise levels without the final zero.

        Raises:
            ValueError: If a value is out of its range.
        """
        _check_steps(num_inference_steps)
        _check_strength(denoising_strength)
        sigma_max, sigma_min = 1.0, DIFFSYNTH_SIGMA_MIN
        if self.config.base_grid == "diffusers":
            sigma_max, sigma_min = self.sigma_max, self.sigma_min
        return _linear_grid(sigma_max, sigma_min, num_inference_steps, denoising_strength).tolist()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
        denoising_strength: float = 1.0,
        shift: float | None = None,
    ) -> None:
        """Set `timesteps` (n values) and `sigmas` (n + 1 values, the last one zero) for the denoising loop.

        Args:
            num_inference_steps (`int`, *optional*):
                Number of steps, at least 1. Required unless `sigmas` or `timesteps` are given.
            device (`str` or `torch.device`, *optional*):
                Device of the two tensors.
            sigmas (`list[float]`, *optional*):
                The grid before the shift, in place of `base_grid`'s.
            mu (`float`, *optional*):
                Logarithm of the shift when `use_dynamic_shifting` is on; not used with a static shift.
            timesteps (`list[float]`, *optional*):
                Timesteps in [0, num_train_timesteps], as in the base class.
            denoising_strength (`float`, *optional*, defaults to 1.0):
                In (0, 1]. Below 1 the grid starts at a lower noise level but keeps `num_inference_steps` steps, unlike
                diffusers' `strength`, which drops the first steps. Noise the start with
                `add_noise(latents, noise, timesteps[0])`.
            shift (`float`, *optional*):
                Static shift of this call, above 0, in place of the configured one.

        Raises:
            ValueError: If a value is out of its range; if `denoising_strength` below 1 comes with explicit `sigmas` or
                `timesteps`; if `shift` comes with dynamic shifting.
        """
        _check_strength(denoising_strength)
        is_explicit = sigmas is not None or timesteps is not None
        if not is_explicit:
            _check_steps(num_inference_steps)
        elif denoising_strength != 1.0:
            raise ValueError(
                f"`denoising_strength={denoising_strength}` shortens the grid that the scheduler makes itself, but "
                "`sigmas` or `timesteps` were passed. Pass either, or pass "
                "`sigmas=scheduler.base_sigmas(num_inference_steps, denoising_strength)`."
            )
        if not is_explicit and (self.config.base_grid == "diffsynth" or denoising_strength != 1.0):
            sigmas = self.base_sigmas(num_inference_steps or 0, denoising_strength)
        schedule: dict[str, Any] = {"device": device, "sigmas": sigmas, "mu": mu, "timesteps": timesteps}
        with self._shifted_by(shift):
            super().set_timesteps(num_inference_steps, **schedule)

    @contextmanager
    def _shifted_by(self, shift: float | None) -> Iterator[None]:
        configured = self.shift
        if shift is not None:
            _check_shift(shift)
            if self.config.use_dynamic_shifting:
                raise ValueError(
                    f"`shift={shift}` is a static shift, but the scheduler shifts dynamically by `mu`. Pass `mu`, or "
                    "make the scheduler with `use_dynamic_shifting=False`."
                )
            self.set_shift(shift)
        try:
            yield
        finally:
            self.set_shift(configured)

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """Find the index of a timestep in the schedule.

        Args:
            timestep (`float` or `torch.Tensor`):
                A single timestep in [0, num_train_timesteps].
            schedule_timesteps (`torch.Tensor` of shape `(n,)`, *optional*):
                The timesteps to search; the scheduler's own by default.

        Returns:
            `int`: The exact match as the base class finds it. On the `"diffsynth"` grid a timestep without an exact
            match (one that went through bfloat16, say) gives the nearest one, as in DiffSynth-Studio.
        """
        schedule: Any = self.timesteps if schedule_timesteps is None else schedule_timesteps
        if self.config.base_grid == "diffusers" or bool((schedule == timestep).any()):
            return super().index_for_timestep(timestep, schedule)
        return int((schedule - timestep).abs().argmin())

    def _nearest_sigmas(self, timesteps: float | torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        values = self.sigmas if values is None else values
        timesteps = torch.as_tensor(timesteps, dtype=torch.float32, device=self.timesteps.device).reshape(-1, 1)
        return values[(self.timesteps - timesteps).abs().argmin(dim=1).to(values.device)]

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: float | torch.Tensor
    ) -> torch.Tensor:
        """Return `(1 - sigma) * original_samples + sigma * noise`, at the noise level of the nearest timestep.

        Unlike `scale_noise` it does not depend on how far the denoising loop has come.

        Args:
            original_samples (`torch.Tensor` of shape `(batch_size, ...)`):
                Clean samples.
            noise (`torch.Tensor` of the same shape):
                Noise.
            timesteps (`float` or `torch.Tensor` of shape `()`, `(1,)` or `(batch_size,)`):
                In [0, num_train_timesteps].

        Returns:
            `torch.Tensor`: Noisy samples of the shape, dtype and device of `original_samples`.

        Raises:
            ValueError: If there is neither a single timestep nor one per sample.
        """
        sigmas = self._nearest_sigmas(timesteps)
        if len(sigmas) not in (1, original_samples.shape[0]):
            raise ValueError(
                f"`timesteps` holds {len(sigmas)} values for {original_samples.shape[0]} samples; pass one for all or "
                "one for each."
            )
        sigmas = sigmas.to(original_samples.device).reshape(-1, *[1] * (original_samples.ndim - 1))
        noisy = (1 - sigmas) * original_samples.float() + sigmas * noise.to(original_samples.device).float()
        return noisy.to(original_samples.dtype)

    def training_target(self, sample: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the velocity that the model learns: `noise - sample`, at every timestep.

        Args:
            sample (`torch.Tensor` of shape `(batch_size, ...)`):
                Clean samples.
            noise (`torch.Tensor` of the same shape):
                The noise that was added to them.

        Returns:
            `torch.Tensor` of the same shape.
        """
        return noise - sample

    def training_weights(self, timesteps: float | torch.Tensor) -> torch.Tensor:
        r"""Return loss weights by timestep: DiffSynth-Studio's "bsmntw", a bell around the middle of the schedule.

        `exp(-2 * ((t - T / 2) / T) ** 2)`, moved down to a minimum of zero and scaled to a mean of one over a schedule
        of `T = num_train_timesteps` steps. On a shorter schedule the second weight is added to all of them, so that no
        step is left untrained. The weights belong to the current schedule: the constructor's, of `T` steps, or the
        one of the last [`set_timesteps`].

        Args:
            timesteps (`float` or `torch.Tensor` of shape `(batch_size,)`):
                In [0, num_train_timesteps]; each takes the weight of the nearest timestep of the schedule.

        Returns:
            `torch.Tensor` of shape `(batch_size,)` in float32, on the device of the schedule.

        Raises:
            ValueError: If the schedule has a single noise level, which leaves nothing to weigh.
        """
        steps, count = self.config.num_train_timesteps, len(self.timesteps)
        levels = self.sigmas[:count] * steps
        bell = torch.exp(-2 * ((levels - steps / 2) / steps) ** 2)
        bell = bell - bell.min()
        if count < 2 or not bool(bell.sum() > 0):
            raise ValueError(
                f"Training weights need a schedule of several noise levels; this one has {count} step(s). Call "
                f"`set_timesteps({steps})` first."
            )
        weights = bell * (steps / bell.sum())
        if count != steps:
            weights = weights * (count / steps)
            weights = weights + weights[1]
        return self._nearest_sigmas(timesteps, weights)


def _linear_grid(sigma_max: float, sigma_min: float, steps: int, strength: float) -> torch.Tensor:
    return torch.linspace(sigma_min + (sigma_max - sigma_min) * strength, sigma_min, steps, dtype=torch.float32)


def _check_steps(steps: int | None) -> None:
    if steps is None or steps < 1:
        raise ValueError(
            f"`num_inference_steps` is {steps}; expected an integer of at least 1, or explicit `sigmas`, `timesteps`."
        )


def _check_strength(strength: float) -> None:
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"`denoising_strength` is {strength}; expected a number in (0, 1].")


def _check_shift(shift: float) -> None:
    if not shift > 0.0:
        raise ValueError(f"`shift` is {shift}; expected a number above 0.")
