"""Stage two of a distillation: the teacher draws what the run will ask for, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

from diffusers.utils import logging

from ...condition import FluxCondition
from ..bare import WINDOW_FIELDS
from ..config.sections import TrainingConfig
from ..config.task_sections import DistillSection
from ..data import BatchPlan, CachedSamples
from ..data.cache.encoding import Prompt
from ..data.cache.keys import digest, model_hashes, module_digest
from ..data.cache.prompts import cached_prompt
from ..distill import DistilledSamples, StudentLevels, Teacher, TeacherPaths
from ..distill.paths import first_text
from ..drawing import drawing_pipeline
from ..draws import Draws
from ..module import condition_modules
from .encoders import recall_hashes
from .samples import Part, encode_options
from .templates import condition_class


logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Lessons:
    """What a run asks of the teacher.

    Args:
        part (`Part`): The samples that are trained on.
        plan (`BatchPlan`): Their order.
        updates (`int`): How many updates there are.
        held (`Sequence[int]`): Samples that are held out.
    """

    part: Part
    plan: BatchPlan
    updates: int
    held: Sequence[int] = ()

    def visits(self, config: TrainingConfig, draws: Draws) -> Iterator[tuple[int, int, str]]:
        """Yield the number of the sample, the epoch and the caption of every visit, as the loader will choose them."""
        for update in islice(self.plan.since(0), self.updates):
            for index, epoch in update.samples:
                text = config.data.captions.choose(self.part.texts(index), draws, index, epoch)
                yield self.part.chosen[index], epoch, text
        for index in self.held:
            yield index, 0, first_text(self.part.samples.texts(index))


def check_steps(config: TrainingConfig) -> None:
    """Raise a `ValueError` if steps are trained one by one with a condition that acts in some of them only.

    Args:
        config (`TrainingConfig`): The configuration.
    """
    if config.distill is None or config.distill.method != "per_step":
        return
    for section in config.conditions:
        for each in fields(condition_class(section.type)):
            whole = 0 if each.name == "start" else 1
            if each.name in WINDOW_FIELDS and each.default != whole:
                raise ValueError(
                    f"{section.type} acts in a part of the steps of a loop (`{each.name}` is {each.default} by "
                    f"default), but `distill.method: per_step` trains steps of one batch that lie anywhere. Take "
                    f"`method: end_to_end`."
                )


def negative_prompt(config: TrainingConfig, pipe: Any | Callable[[], Any]) -> tuple[str, Prompt] | None:
    """Encode the teacher's negative prompt while there are text encoders.

    Args:
        config (`TrainingConfig`): The configuration.
        pipe (`FluxPipeline` or `Callable`): Gives the encoders, or a function that loads them.

    Returns:
        `tuple[str, Prompt]`, *optional*: its name by content and the prompt; `None` if the teacher has none.
    """
    section = config.distill
    if section is None or not section.teacher.guided or config.data.cache is None:
        return None
    models = recall_hashes(config) or model_hashes(pipe)
    return cached_prompt(section.teacher.negative_prompt, pipe, config.data.cache, models, encode_options(config))


def teach(
    config: TrainingConfig,
    section: DistillSection,
    pipe: Any,
    conditions: Sequence[FluxCondition],
    samples: CachedSamples,
    lessons: Lessons,
    negative: tuple[str, Prompt] | None = None,
    process: int = 0,
    processes: int = 1,
    wait: Callable[[], None] | None = None,
) -> DistilledSamples:
    """Let the teacher draw what is missing of everything that the run will visit.

    Args:
        config (`TrainingConfig`): The configuration.
        section (`DistillSection`): Its part on distillation.
        pipe (`FluxConditionedPipeline`): Gives the transformer, before anything is added to it, and the scheduler.
        conditions (`Sequence[FluxCondition]`): The samples' conditions, bare.
        samples (`CachedSamples`): All samples.
        lessons (`Lessons`): What is asked.
        negative (`tuple[str, Prompt]`, *optional*): As of [`negative_prompt`].
        process (`int`, defaults to 0): Number of this process.
        processes (`int`, defaults to 1): How many share the work.
        wait (`Callable`, *optional*): Waits for all processes.

    Returns:
        `DistilledSamples`
    """
    modules = condition_modules(conditions)
    for module in modules.values():
        module.eval()
    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    facts = [
        module_digest(pipe.transformer),
        {name: module_digest(module) for name, module in modules.items()},
        [type(pipe.scheduler).__name__, digest({key: repr(value) for key, value in scheduler.items()})],
        None if negative is None else negative[0],
    ]
    options = section.teacher.options
    drawing = drawing_pipeline(pipe.transformer, pipe.vae, pipe.scheduler)
    levels = StudentLevels(pipe.scheduler, 2 * drawing.vae_scale_factor, section.num_inference_steps)
    # A whole sampler is compared at its end, so one path serves students of any number of steps.
    noted = levels if section.method == "per_step" else replace(levels, num_steps=1)
    paths = TeacherPaths(samples, options, noted.num_steps, config.seed, section.noises, facts)
    teacher = Teacher(drawing, conditions, options, noted, None if negative is None else negative[1])
    missing = paths.missing(lessons.visits(config, Draws(config.seed)))
    if wait is not None:
        # All processes must have found the same paths missing before the first one is made.
        wait()
    own = sorted(missing)[process::processes]
    paths.make(teacher, {key: missing[key] for key in own}, _report)
    if wait is not None:
        wait()
    return DistilledSamples(samples, paths, levels)


def _report(done: int, total: int) -> None:
    if done == total or done % 100 == 0:
        logger.info(f"The teacher drew {done} of {total} images.")
