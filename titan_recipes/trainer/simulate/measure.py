"""Real steps of the trainer, measured: the same over a fake world and over real ranks."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from titan_recipes.config.datasets import asked_datasets
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.trainer.data.loader import Batch, TrainingData
from titan_recipes.trainer.metrics import RankEvents
from titan_recipes.trainer.parallel.mesh import World
from titan_recipes.trainer.simulate.collectives import CollectiveCounter, Kind, Traffic
from titan_recipes.trainer.simulate.memory import CATEGORIES, STATE, MemoryTracker, Peak
from titan_recipes.trainer.train import Trainer

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """One rank. start: until the end of the first step; steady: any later one.

    host: what CPU offload keeps in host memory and the other two leave out. collectives: of one
    steady step, all its passes.
    """

    start: Peak
    steady: Peak
    host: Peak
    collectives: dict[Kind, Traffic]


def measurable(job: Job) -> Job:
    """The job without what a rank's memory and collectives do not depend on: files, compile."""
    return replace(
        job,
        compile=replace(job.compile, enable=False),
        checkpoint=replace(job.checkpoint, enable=False),
        metrics=replace(job.metrics, enable_tensorboard=False, enable_wandb=False),
        validation=replace(job.validation, enable=False),
    )


class BlankData:
    """Batches of a job's shapes that hold no text."""

    def __init__(self, job: Job) -> None:
        self._shape = (job.training.local_batch_size, job.training.seq_len)
        chat = any(asked.is_chat for asked in asked_datasets(job))
        self._has_documents = chat or job.data.document_mask

    def next_batch(self) -> Batch:
        def blank() -> torch.Tensor:
            return torch.zeros(self._shape, dtype=torch.int64)

        return Batch(blank(), blank(), blank() if self._has_documents else None)

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        pass

    def close(self) -> None:
        pass


def measure(job: Job, layout: RunLayout, world: World, data: TrainingData, say: Say) -> Measured:
    """Train a few steps and measure them. say: told what is under way.

    The first step makes the optimizer's state; the second is a steady one of one pass. Where a step
    has more passes, a third has two: from their difference follow the collectives of all, and
    memory grows no further after the second, which is the first to find gradients.
    """
    counter, tracker = CollectiveCounter(world), MemoryTracker()
    passes = job.derived.gradient_accumulation_steps
    # What the trainer prints of a step that computes nothing is of no use to anyone.
    with contextlib.redirect_stdout(io.StringIO()), tracker, counter:
        say(f"building {job.model.n_layers} layers, {job.derived.num_params:,} parameters")
        trainer = Trainer(job, layout, world, RankEvents(layout, world.rank), data=data)
        tracker.watch(trainer.model_parts, trainer.optimizers)
        steps = [1, 1, 2] if passes > 1 else [1, 1]
        places: list[int] = []
        traffic: list[dict[Kind, Traffic]] = []
        for number, step_passes in enumerate(steps, start=1):
            say(f"step {number} of {len(steps)}")
            derived = replace(job.derived, gradient_accumulation_steps=step_passes)
            trainer.job = replace(job, derived=derived)
            trainer.train_step()
            places.append(tracker.now())
            traffic.append(counter.take())
    offloaded = STATE if job.training.enable_cpu_offload else ()
    kept = tuple(name for name in CATEGORIES if name not in offloaded)
    first, last = places[0], places[-1]
    return Measured(
        start=tracker.peak(0, first, elsewhere=offloaded),
        steady=tracker.peak(first, last, elsewhere=offloaded),
        host=tracker.peak(first, last, elsewhere=kept),
        collectives=_all_passes(traffic[1], traffic[-1], passes),
    )


def _all_passes(
    one: dict[Kind, Traffic], two: dict[Kind, Traffic], passes: int
) -> dict[Kind, Traffic]:
    """The traffic of a step of many passes from that of a step of one and, if many, of two."""
    nothing = Traffic(0, 0)
    result: dict[Kind, Traffic] = {}
    for kind in sorted({*one, *two}):
        first, both = one.get(kind, nothing), two.get(kind, nothing)
        more = passes - 1
        result[kind] = Traffic(
            first.count + more * (both.count - first.count),
            first.size + more * (both.size - first.size),
        )
    return result
