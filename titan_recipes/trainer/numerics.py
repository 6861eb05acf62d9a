"""Repeatable numbers, and steps that are not finite: skipped, told by rank, in the end fatal."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

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


class OnItsWay:
    """Numbers that travel from the device to the host while both go on."""

    def __init__(self, **values: Tensor) -> None:
        self._names = tuple(values)
        packed = torch.stack([value.double() for value in values.values()])
        self._arrived = None
        self._values = packed
        if packed.is_cuda:
            self._values = torch.empty_like(packed, device="cpu", pin_memory=True)
            self._values.copy_(packed, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> dict[str, float]:
        """The numbers by name; waits where they are not here yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))


class FiniteCheck:
    """Counts skipped steps in a row. log: prints a line for people."""

    def __init__(self, world: World, *, log: Callable[[str], None]) -> None:
        self.skipped_in_a_row = 0
        self._world = world
        self._log = log

    def note(self, step: int, *, finite: bool, local_loss: float, local_norm: float) -> None:
        """Count a step; the local figures are this rank's shares of loss and gradient.

        Raises NumericsError after MAX_SKIPPED_STEPS in a row.
        """
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if finite:
            return
        where = self._find_faulty((math.isfinite(local_loss), math.isfinite(local_norm)))
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
