"""What each step came to, on its way from the device: checked, timed and written down.

A step's figures travel to the host while the next step runs, so that neither waits for the other.
They are waited for only where someone wants them at once: at a logged step, before a checkpoint,
before validation.
"""

import math

import torch
from torch import Tensor

from titan_recipes.config.job import Job
from titan_recipes.trainer.metrics import MetricsLog, RankEvents, StepTimer, memory_gib
from titan_recipes.trainer.numerics import FiniteCheck
from titan_recipes.trainer.parallel.mesh import World


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


class StepFigures:
    """Takes note of one step after the other."""

    def __init__(
        self,
        job: Job,
        world: World,
        *,
        metrics: MetricsLog,
        events: RankEvents,
        timer: StepTimer,
        finite_check: FiniteCheck,
    ) -> None:
        self._tokens_per_step, self._device = job.derived.tokens_per_step, world.device
        self._metrics, self._events, self._timer = metrics, events, timer
        self._finite_check = finite_check
        self._unsettled: tuple[int, float, OnItsWay] | None = None

    def note(self, step: int, lr: float, *, log: bool, **values: Tensor) -> None:
        """Begin the journey of a step's figures, and settle the step before; log: this one too.

        values: scalars, of which loss and grad_norm are of all ranks (the mean per token; the norm
        before clipping), local_loss and local_norm this rank's. What else there is is logged.
        """
        figures = OnItsWay(**values)
        self.settle()
        self._unsettled = (step, lr, figures)
        if log:
            self.settle(log=True)

    def settle(self, *, log: bool = False) -> None:
        """Take note of the step whose figures are on their way, if there is one.

        log: write it down; a step that is not finite is written down in any case. Raises
        NumericsError after too many of those.
        """
        if self._unsettled is None:
            return
        (step, lr, on_its_way), self._unsettled = self._unsettled, None
        figures = on_its_way.read()
        local = {name: figures.pop(name) for name in ("local_loss", "local_norm")}
        finite = math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"])
        if finite:
            self._timer.add_tokens(self._tokens_per_step)
        if log or not finite:
            loss, grad_norm = figures.pop("loss"), figures.pop("grad_norm")
            row = {"loss": loss, "grad_norm": grad_norm, "lr": lr, **self._timer.read()._asdict()}
            self._metrics.log(step, **row, memory_gib=memory_gib(self._device), **figures)
            self._events.write("step", step=step, loss=loss, grad_norm=grad_norm)
        self._finite_check.note(step, finite=finite, **local)
