"""diffusers' tests for all schedulers; it has none for `FlowMatchEulerDiscreteScheduler` alone."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_flux_ext import FluxFlowMatchScheduler

from .checkout import STOCK, add_tests, skip_without_checkout, upstream


skip_without_checkout()

schedulers = upstream("schedulers.test_schedulers")


class SchedulerTests(schedulers.SchedulerCommonTest):
    """With the time grid of the constructor."""

    scheduler_classes: Any = (FlowMatchEulerDiscreteScheduler,)
    forward_default_kwargs = (("num_inference_steps", 10),)
    given: dict[str, Any] = {}

    def get_scheduler_config(self, **kwargs: Any) -> dict[str, Any]:
        return {"num_train_timesteps": 1000, "shift": 3.0, **self.given, **kwargs}


SchedulerTests.__module__ = schedulers.__name__
add_tests(
    globals(),
    "scheduler",
    SchedulerTests,
    {
        STOCK: {},
        "ours": {"scheduler_classes": (FluxFlowMatchScheduler,)},
        "ours on diffusers' grid": {
            "scheduler_classes": (FluxFlowMatchScheduler,),
            "given": {"base_grid": "diffusers"},
        },
    },
)
del SchedulerTests
