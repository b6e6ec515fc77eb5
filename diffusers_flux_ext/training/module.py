"""The one module that is trained: a transformer with conditions, from a batch to losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields
from typing import Any

import torch

from ..attention.processor import regional_attention
from ..caches.foreign import foreign_cache
from ..caches.rules import active_caches
from ..condition import FluxCondition, check_conditions
from ..denoise import DenoisingStep, PromptEmbeds, predict_velocity
from ..encoded import EncodedConditions
from .batch import TrainingBatch
from .losses import errors as choose_errors
from .losses import round_to
from .sampler import sample_through


Errors = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Maps prediction, target, noise levels and token weights to one error per sample."""

Weighting = Callable[[torch.Tensor], torch.Tensor]
"""Maps noise levels to weights of the loss."""


mean_squared_error: Errors = choose_errors("mse")


class FluxTraining(torch.nn.Module):
    """A transformer and the modules of its conditions; its forward pass maps a batch to one loss per sample.

    It calls [`predict_velocity`] like the denoising loop. Wrappers such as `DistributedDataParallel` go around this
    module, so that they see every trained parameter, while the transformer inside stays bare. Which parameters are
    trained is decided by their `requires_grad`.

    Attention processors for regions are installed until [`close`] is called, since gradient checkpointing runs blocks
    again in the backward pass. The module is also a context manager that closes itself.

    Args:
        transformer (`FluxTransformer2DModel`): The transformer, with or without adapters.
        conditions (`Sequence[FluxCondition]`, *optional*):
            The conditions, which may be bare (see [`bare_condition`]); their modules become submodules.
        errors (`Callable`, *optional*): The loss; see [`losses.errors`]. By default the mean squared error.
        weighting (`Callable`, *optional*):
            Maps noise levels to weights of the loss; see [`losses.weighting`]. All 1 by default.
        base (`Callable`, *optional*):
            Makes a context in which the transformer is the untrained base, for samples whose target is the base's own
            prediction. By default adapters are disabled there.
        text (`TextEncoding`, *optional*): Text encoders that are trained; batches then need texts.
        strengths (`Callable`, *optional*):
            Takes the strengths of a batch's samples before they run; see [`Strengths.set`].

    Raises:
        ValueError: if a condition changes latents after a step, or a cache skips parts of the transformer.
        TypeError: if `conditions` holds anything else.
    """

    def __init__(
        self,
        transformer: torch.nn.Module,
        conditions: Sequence[FluxCondition] = (),
        errors: Errors = mean_squared_error,
        weighting: Weighting | None = None,
        base: Callable[[], AbstractContextManager[Any]] | None = None,
        text: torch.nn.Module | None = None,
        strengths: Callable[[torch.Tensor | None], None] | None = None,
    ) -> None:
        super().__init__()
        self._conditions = tuple(check_conditions(list(conditions)))
        for condition in self._conditions:
            _check_trains(condition)
        self._check_caches(transformer)
        self.transformer = transformer
        self.condition_modules = torch.nn.ModuleDict(condition_modules(self._conditions))
        self.text = text
        self._errors, self._weighting = errors, weighting
        self.set_strengths = strengths or (lambda values: None)
        self._base = base or (lambda: _without_adapters(transformer))
        self._stack = ExitStack()
        self._stack.enter_context(regional_attention(transformer))

    @property
    def conditions(self) -> tuple[FluxCondition, ...]:
        """The conditions."""
        return self._conditions

    def close(self) -> None:
        """Give the transformer its former attention processors back."""
        self._stack.close()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Let something be undone by [`close`], before the processors are given back.

        Args:
            callback (`Callable`): Undoes it.
        """
        self._stack.callback(callback)

    def __enter__(self) -> FluxTraining:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def forward(self, batch: TrainingBatch, weighted: bool = True) -> torch.Tensor:
        """Compute the loss of each sample.

        Args:
            batch (`TrainingBatch`): The batch, on the transformer's device.
            weighted (`bool`, defaults to `True`): Whether to apply the weights of noise levels and samples.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`, float32 or wider.

        Raises:
            ValueError: if the batch does not fit the transformer or the conditions.
        """
        return self.losses(batch, weighted)

    def losses(self, batch: TrainingBatch, weighted: bool = True) -> torch.Tensor:
        """Compute the loss of each sample, with or without its weights.

        Args:
            batch (`TrainingBatch`): The batch.
            weighted (`bool`, defaults to `True`): Whether to apply the weights of noise levels and samples.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`.

        Raises:
            ValueError: if the batch does not fit the transformer or the conditions.
        """
        self.set_strengths(batch.strength)
        sigma = batch.sigma if batch.schedule is None else torch.zeros_like(batch.sigma)
        if batch.schedule is None:
            step, target = self._step(batch)
            prediction = self._predict(step, batch)
            target = self._target(batch, target)
        else:
            prediction, target = self._sampled(batch, batch.schedule), batch.latents
        wide = torch.promote_types(prediction.dtype, torch.float32)
        errors = self._errors(prediction.to(wide), target.to(wide), sigma.to(wide), batch.mask)
        if not weighted:
            return errors
        for factor in (None if self._weighting is None else self._weighting(sigma), batch.weight):
            errors = errors if factor is None else errors * factor.to(errors)
        return errors

    def _step(self, batch: TrainingBatch) -> tuple[DenoisingStep, torch.Tensor]:
        prompt = self._prompt(batch)
        # The model gets this level in its own data type, so noise must be mixed at the rounded one.
        sigma = round_to(batch.sigma, prompt.hidden_states.dtype)
        level = sigma.to(batch.latents.dtype)[:, None, None]
        noisy = (1 - level) * batch.latents + level * batch.noise
        return self._at(batch, prompt, sigma, noisy), batch.noise - batch.latents

    def _at(
        self, batch: TrainingBatch, prompt: PromptEmbeds, sigma: torch.Tensor, latents: torch.Tensor, index: int = 0,
        num_steps: int = 1,
    ) -> DenoisingStep:  # fmt: skip
        dtype, guidance = prompt.hidden_states.dtype, self._guidance(batch)
        return DenoisingStep(
            index, num_steps, "cond", sigma.to(dtype), latents.to(dtype), batch.latent_ids, prompt, guidance
        )

    def _prompt(self, batch: TrainingBatch) -> PromptEmbeds:
        prompt_embeds, pooled = batch.prompt_embeds, batch.pooled_prompt_embeds
        if self.text is not None:
            prompt_embeds, pooled = (each.to(prompt_embeds.dtype) for each in self.text(_texts(batch)))
        return PromptEmbeds(prompt_embeds, pooled, batch.latent_ids.new_zeros(prompt_embeds.shape[1], 3))

    def _sampled(self, batch: TrainingBatch, schedule: torch.Tensor) -> torch.Tensor:
        if batch.preserved is not None and bool(batch.preserved.any()):
            raise ValueError(
                "The batch has a `schedule`, so its target is what the sampler should make, but some samples are "
                "`preserved`, whose target is the base's velocity. Train them in batches of their own."
            )
        prompt, num_steps = self._prompt(batch), len(schedule) - 1

        def velocity(latents: torch.Tensor, levels: torch.Tensor, index: int) -> torch.Tensor:
            sigma = round_to(levels, prompt.hidden_states.dtype)
            return self._predict(self._at(batch, prompt, sigma, latents, index, num_steps), batch)

        return sample_through(batch.noise, schedule, velocity)

    def _guidance(self, batch: TrainingBatch) -> torch.Tensor | None:
        takes = bool(getattr(self.transformer, "config", {}).get("guidance_embeds", False))
        if takes != (batch.guidance is not None):
            raise ValueError(
                f"The transformer {'takes an' if takes else 'takes no'} embedded guidance, and the batch has "
                f"{'none' if batch.guidance is None else 'one'}. Set the guidance to "
                f"{'a number such as 1' if takes else 'None'}."
            )
        return batch.guidance

    def _predict(self, step: DenoisingStep, batch: TrainingBatch) -> torch.Tensor:
        # What a sample does not have encodes nothing, and all samples of a batch are alike.
        given = [place for place, encoded in enumerate(batch.conditions) if encoded]
        encoded = EncodedConditions.from_tensors(
            [self._conditions[place] for place in given],
            [batch.conditions[place] for place in given],
            None if batch.keep is None else batch.keep[given],
        )
        step = encoded.with_prompt(step)
        return predict_velocity(self.transformer, step, encoded.contributions(step))

    def _target(self, batch: TrainingBatch, target: torch.Tensor) -> torch.Tensor:
        preserved = batch.preserved
        if preserved is None or not bool(preserved.any()):
            return target
        with torch.no_grad(), self._base():
            # Text encoders may be trained, too, so the prompt is encoded again.
            own = self._predict(self._step(batch)[0], batch).to(target)
        return torch.where(preserved.to(target.device)[:, None, None], own, target)

    def _check_caches(self, transformer: torch.nn.Module) -> None:
        foreign = foreign_cache(transformer)
        found = sorted(active_caches(transformer)) + ([] if foreign is None else [foreign.name])
        if found:
            raise ValueError(
                f"The transformer runs with {found}, which skip parts of it, so their weights would get no gradients. "
                f"Call `transformer.disable_cache()` before training."
            )


def condition_modules(conditions: Sequence[FluxCondition]) -> dict[str, torch.nn.Module]:
    """Return the modules of conditions that run with gradients, each once.

    Args:
        conditions (`Sequence[FluxCondition]`): The conditions.

    Returns:
        `dict[str, torch.nn.Module]`: by the condition's class and the field, for example
        `"ControlNetImage_controlnet"`, with a number for further conditions of one class.
    """
    found: dict[str, torch.nn.Module] = {}
    names = [type(condition).__name__ for condition in conditions]
    for place, condition in enumerate(conditions):
        number = names[:place].count(names[place])
        prefix = names[place] + (str(number + 1) if number else "")
        for each in fields(condition):
            value = getattr(condition, each.name)
            fits = isinstance(value, torch.nn.Module) and each.name not in condition.own_placement
            if fits and all(value is not other for other in found.values()):
                found[f"{prefix}_{each.name}"] = value
    return found


def _texts(batch: TrainingBatch) -> Sequence[str]:
    if batch.texts is None:
        raise ValueError("Text encoders are trained, but the batch has no `texts`.")
    return batch.texts


def _check_trains(condition: FluxCondition) -> None:
    if type(condition).after_step is not FluxCondition.after_step:
        raise ValueError(
            f"{type(condition).__name__} changes the latents after each step of a loop, so there is nothing to train. "
            f"Leave it out, and use it when drawing images."
        )


@contextmanager
def _without_adapters(transformer: Any) -> Iterator[None]:
    if not getattr(transformer, "peft_config", None):
        raise ValueError(
            "The base's own prediction is the target of some samples, but this transformer has no adapters to "
            "disable. Train a LoRA, or give `base`, which makes a context with the untrained weights."
        )
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()
