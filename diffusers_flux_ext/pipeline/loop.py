"""The denoising loop, written once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..attention.processor import regional_attention
from ..denoise import DenoisingStep, PromptEmbeds
from ..encoded import EncodedConditions
from ..sequence import Contribution
from .call_checks import read_callback
from .calls import LoopCalls, next_timestep
from .concurrent import check_schedule


class DenoisingLoopMixin:
    """The loop as a method of a pipeline."""

    transformer: Any
    scheduler: Any
    guidance_scale: float
    interrupt: bool
    progress_bar: Callable[..., Any]
    _current_timestep: torch.Tensor | None
    _joint_attention_kwargs: dict[str, Any]

    def denoise(
        self,
        latents: torch.Tensor,
        latent_ids: torch.Tensor,
        timesteps: torch.Tensor,
        cond: PromptEmbeds,
        uncond: PromptEmbeds | None,
        encoded: EncodedConditions,
        adapter_kwargs: Sequence[dict[str, Any]],
        true_cfg_scale: float,
        callback_on_step_end: Callable[..., dict[str, Any]] | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> torch.Tensor:
        """Run the loop.

        Args:
            latents (`torch.Tensor` of shape `(batch_size, num_tokens, 64)`): Where it starts.
            latent_ids (`torch.Tensor` of shape `(num_tokens, 3)`): Rotary positions of the latents.
            timesteps (`torch.Tensor` of shape `(steps,)`): The scheduler's timesteps.
            cond (`PromptEmbeds`): The prompt.
            uncond (`PromptEmbeds`, *optional*): The negative prompt; turns classifier-free guidance on.
            encoded (`EncodedConditions`): The conditions.
            adapter_kwargs (`Sequence[dict[str, Any]]`): IP-Adapter arguments of the two branches.
            true_cfg_scale (`float`): Scale of classifier-free guidance.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step, as in diffusers; it may return `None` where it changes nothing.
            callback_on_step_end_tensor_inputs (`Sequence[str]`): What it gets: `"latents"`, `"prompt_embeds"`.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_tokens, 64)`
        """
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full([1], self.guidance_scale, device=latents.device, dtype=torch.float32)
            guidance = guidance.expand(latents.shape[0])
        calls, prompt_embeds = LoopCalls(self.transformer, encoded), cond.hidden_states
        schedule = self.scheduler.timesteps
        with regional_attention(self.transformer), self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                step = DenoisingStep(
                    index=i,
                    num_steps=len(timesteps),
                    branch="cond",
                    timestep=t.expand(latents.shape[0]).to(latents.dtype) / 1000,
                    latents=latents,
                    latent_ids=latent_ids,
                    prompt=replace(cond, hidden_states=prompt_embeds),
                    guidance=guidance,
                    next_timestep=next_timestep(timesteps, i, latents.shape[0]),
                )
                given = [self._given(each) for each in adapter_kwargs]
                if uncond is None:
                    velocity = calls.velocity(step, given[0])
                else:
                    negative_step = replace(step, branch="uncond", prompt=uncond)
                    velocities = calls.both_velocities(step, negative_step, given)
                    velocity = encoded.combine_velocities(step, *velocities, true_cfg_scale)
                check_schedule(self.scheduler, schedule)
                latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0].to(latents.dtype)
                latents = encoded.after_step(step, latents)

                if callback_on_step_end is not None:
                    known = locals()
                    callback_kwargs = {name: known[name] for name in callback_on_step_end_tensor_inputs}
                    changed = read_callback(callback_on_step_end(self, i, t, callback_kwargs), latents, prompt_embeds)
                    latents, prompt_embeds = changed
                if i == len(timesteps) - 1 or (i + 1) % self.scheduler.order == 0:
                    progress_bar.update()
        self._current_timestep = None
        return latents

    def _given(self, adapter_kwargs: dict[str, Any]) -> Contribution:
        return Contribution(attention_kwargs={**self._joint_attention_kwargs, **adapter_kwargs})
