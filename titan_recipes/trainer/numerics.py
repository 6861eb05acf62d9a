"""Repeatable numbers, and steps that are not finite: skipped, told by rank, in the end fatal."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from titan_recipes.config.schema import Debug
from titan_recipes.errors import NumericsError
from titan_recipes.trainer.parallel.mesh import World

MAX_SKIPPED_STEPS = 3
"""Steps in a row whose loss or gradient norm may be non-finite before the run ends."""


def set_determinism(debug: Debug) -> None:
    """Seed every generator; with debug.deterministic allow only bitwise repeatable kernels."""
    torch.manual_seed(debug.seed)
    torch.use_deterministic_algorithms(debug.deterministic, warn_only=debug.deterministic_warn_only)
    torch.backends.cudnn.deterministic = debug.deterministic


def attention_kernels(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A context in which torch tries its attention kernels in the order best for a GPU.

    From Hopper on cuDNN's comes before flash attention (arXiv:2407.08608 measures both there).
    """
    if device.type != "cuda":
        return nullcontext
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
    if torch.cuda.get_device_capability(device) < (9, 0):
        order.reverse()
    order += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return partial(sdpa_kernel, order, set_priority=True)


class FiniteCheck:
    """Counts skipped steps in a row. log: prints a line for people.

    can_skip: whether the update of a step that is not finite was left out.
    """

    def __init__(self, world: World, *, log: Callable[[str], None], can_skip: bool = True) -> None:
        self.skipped_in_a_row = 0
        self._can_skip = can_skip
        self._world = world
        self._log = log

    def note(self, step: int, *, finite: bool, local_loss: float, local_norm: float) -> None:
        """Count a step; the local figures are this rank's shares of loss and gradient.

        Raises NumericsError after MAX_SKIPPED_STEPS in a row, or where it was not skipped.
        """
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if finite:
            return
        where = self._find_faulty((math.isfinite(local_loss), math.isfinite(local_norm)))
        if not self._can_skip:
            raise NumericsError(
                f"step {step}: {where}; its update was made in backward and has damaged the "
                "weights (optimizer.early_step_in_backward), but the newest checkpoint is from "
                "before: titan-recipes resume, or launch a new run with a lower optimizer.lr"
            )
        self._log(f"step {step}: {where}; the update is skipped")
        if self.skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise NumericsError(
                f"step {step}: {where}, {self.skipped_in_a_row} steps in a row; launch "
                "a new run with a lower optimizer.lr (from a checkpoint of this one: "
                "checkpoint.initial_load_path), or go back to an earlier checkpoint: "
                "titan-recipes resume --set checkpoint.load_step=N"
            )

    def _find_faulty(self, own: tuple[bool, bool]) -> str:
        """What is not finite, and on which ranks; own: whether this rank's figures are."""
        every: list[Any] = [own]
        if self._world.mesh is not None:
            every = [None] * self._world.size
            dist.all_gather_object(every, own, group=self._world.host_group)
        for index, what in enumerate(("loss", "gradient")):
            if bad := [str(rank) for rank, finite in enumerate(every) if not finite[index]]:
                return f"{what} not finite on rank {', '.join(bad)}"
        return "gradient norm not finite: its squares overflow"
