"""`enable_parallelism`: several devices for one image."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .._compat.parallel import split_degree, split_no_more, split_over
from .budgets import free_tiles, share_budgets
from .ranks import Ranks, device_of, ranks_of, set_ranks


class ParallelMixin:
    """Several devices for one image, as methods of a pipeline."""

    transformer: Any

    def enable_parallelism(
        self,
        ulysses_degree: int = 1,
        cfg_parallel: bool = False,
        *,
        ulysses_anything: bool = False,
        timeout: float = 300.0,
    ) -> None:
        """Draw each image on several devices, one process each, that all make the same call.

        Start the processes with `torchrun` or `accelerate launch`, call `torch.distributed.init_process_group`, load
        the pipeline in each, and call this after it is on its device. Every process returns the whole image. A VRAM
        budget of the pipeline is planned again for this process's share of the tokens; those of other processes may
        be larger or smaller.

        Args:
            ulysses_degree (`int`, defaults to 1):
                Devices that share the tokens of a sequence by Ulysses attention
                ([paper](https://huggingface.co/papers/2309.14509)); attention rules of conditions, too.
            cfg_parallel (`bool`, defaults to `False`):
                Whether the two branches of true classifier-free guidance run side by side, on twice as many devices.
            ulysses_anything (`bool`, defaults to `False`):
                Whether the numbers of tokens and of attention heads may be anything, for somewhat more communication.
            timeout (`float`, defaults to 300):
                Seconds that a process waits for the others before it raises an error.

        Raises:
            RuntimeError: if `torch.distributed` is not initialised, or the transformer is parallel already.
            ValueError: if there are not as many processes as devices asked for, or budgets do not fit together.
            VRAMBudgetError: if the budget is too small for the share; other processes raise a `RuntimeError` then.
        """
        _check_arguments(ulysses_degree, cfg_parallel, ulysses_anything, timeout)
        if ranks_of(self.transformer) is not None or split_degree(self.transformer) > 1:
            raise RuntimeError("The transformer is parallel already. Call `disable_parallelism` first.")
        device = device_of(self.transformer)
        shape = (1 + cfg_parallel, 1, ulysses_degree)
        mesh = _mesh(dist.group.WORLD, device.type, shape)
        if ulysses_degree > 1:
            config = ContextParallelConfig(
                ulysses_degree=ulysses_degree, ulysses_anything=ulysses_anything, mesh=mesh["ring", "ulysses"]
            )
            split_over(self.transformer, config, device.type)
        branches = mesh["branches"].get_group() if cfg_parallel else None
        set_ranks(self.transformer, ranks := Ranks(dist.group.WORLD, device, branches, timeout))
        _limit_waiting(mesh, timeout)
        try:
            share_budgets(ranks, self.transformer)
        except Exception:
            self.disable_parallelism()
            raise

    def disable_parallelism(self) -> None:
        """Undo [`enable_parallelism`]; without it nothing happens."""
        if split_degree(self.transformer) > 1:
            split_no_more(self.transformer)
        set_ranks(self.transformer, None)
        free_tiles(self.transformer)


def _check_arguments(ulysses_degree: int, cfg_parallel: bool, ulysses_anything: bool, timeout: float) -> None:
    devices = ulysses_degree * (1 + cfg_parallel)
    if ulysses_degree < 1 or devices < 2:
        raise ValueError(
            f"`ulysses_degree` is {ulysses_degree} and `cfg_parallel` is {cfg_parallel}, which is {devices} device; "
            f"expected a degree of at least 2, or `cfg_parallel=True`."
        )
    if ulysses_anything and ulysses_degree == 1:
        raise ValueError("`ulysses_anything` has no effect with `ulysses_degree=1`. Leave it out.")
    if not timeout > 0:
        raise ValueError(f"`timeout` must be above 0 seconds, got {timeout}.")
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "Several devices need one process each. Start the script with `torchrun --nproc-per-node="
            f"{devices} script.py`, and call `torch.distributed.init_process_group()` before `enable_parallelism`."
        )
    if dist.get_world_size() != devices:
        raise ValueError(
            f"There are {dist.get_world_size()} processes, but `ulysses_degree={ulysses_degree}` and "
            f"`cfg_parallel={cfg_parallel}` need {devices}. Start as many, or change the arguments."
        )


@cache
def _mesh(world: Any, device_type: str, shape: tuple[int, int, int]) -> DeviceMesh:
    """Return the mesh of a group of all processes; made once, since each one opens connections that stay."""
    return init_device_mesh(device_type, shape, mesh_dim_names=("branches", "ring", "ulysses"))


def _limit_waiting(mesh: DeviceMesh, timeout: float) -> None:
    limit = timedelta(seconds=timeout)
    groups = [dist.group.WORLD, *(mesh[name].get_group() for name in ("branches", "ring", "ulysses"))]
    if mesh["ulysses"].size() > 1:
        groups.append(mesh["ring", "ulysses"]._flatten().get_group())
    for group in groups:
        # torch has no public name for it yet.
        torch.distributed.distributed_c10d._set_pg_timeout(limit, group)
