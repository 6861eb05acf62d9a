"""Pipeline parallelism: consecutive layers on different ranks, microbatches flowing through them.

The stages of a rank are whole decoders with parts left out, so that names stay those of the model
and a checkpoint does not know of the split. The schedules are torch.distributed.pipelining's; what
they ask of a job is checked by `config.stages`. The stages' buffers are allocated for the shapes
given here: left to itself torch finds them by a forward and a backward of its own, at the start and
after each validation, which would count tokens per expert twice.
"""

import contextlib
import copy
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleSingle,
    _Action,
    _ComputationType,
    _PipelineScheduleRuntime,
    get_schedule_class,
)

from titan_recipes.config.job import Job
from titan_recipes.config.stages import (
    num_microbatches,
    num_stages,
    schedule_of,
    stage_modules,
    stages_of_rank,
)
from titan_recipes.trainer.data.loader import Batch
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.parallel.mesh import World
from titan_recipes.trainer.parallel.precision import DTYPES
from titan_recipes.trainer.parallel.schedule_csv import read_schedule_csv
from titan_recipes.trainer.parallel.tied import TiedWeight

_FORWARD = (_ComputationType.FORWARD, _ComputationType.SEND_F, _ComputationType.RECV_F)


def split_model(model: Decoder, job: Job, world: World) -> list[Decoder]:
    """This rank's stages of a model on the meta device, in order. Raises ConfigError for a CSV."""
    assert world.pp_mesh is not None
    modules = stage_modules(job)
    own = _stages_of_ranks(job)[world.pp_mesh.get_local_rank()]
    return [_stage_module(model, modules[stage]) for stage in own]


def _stages_of_ranks(job: Job) -> list[tuple[int, ...]]:
    """The stages of each rank of the pipeline, in order."""
    if path := job.parallelism.pipeline_parallel_schedule_csv:
        return read_schedule_csv(
            Path(path),
            ranks=job.derived.pp,
            stages=num_stages(job),
            microbatches=num_microbatches(job),
        )
    return [stages_of_rank(job, rank) for rank in range(job.derived.pp)]


def _stage_module(model: Decoder, names: tuple[str, ...]) -> Decoder:
    part = copy.deepcopy(model)
    for end in ("tok_embeddings", "norm", "output"):
        if end not in names:
            setattr(part, end, None)
    for layer in list(part.layers):
        if f"layers.{layer}" not in names:
            del part.layers[layer]
    return part


class Pipeline:
    """Runs batches through the stages of all ranks; what leaves the last is the loss."""

    def __init__(self, parts: list[Decoder], job: Job, world: World) -> None:
        assert world.pp_mesh is not None
        self._parts, self._device = parts, world.device
        self._num_tokens = torch.ones((), device=world.device)
        stages, of_ranks = num_stages(job), _stages_of_ranks(job)
        first, last = (
            next(rank for rank, held in enumerate(of_ranks) if end in held)
            for end in (0, stages - 1)
        )
        rank = world.pp_mesh.get_local_rank()
        own, self._has_first, self._has_last = of_ranks[rank], rank == first, rank == last
        is_tied = job.model.tie_embeddings
        self._tied = TiedWeight(parts, world, first, last) if is_tied else None
        group = world.pp_mesh.get_group()
        pipeline_stages = [
            PipelineStage(part, stage, stages, world.device, group=group, **_shapes(part, job))
            for part, stage in zip(parts, own, strict=True)
        ]
        options: dict[str, Any] = {
            "n_microbatches": num_microbatches(job),
            "loss_fn": self._microbatch_loss,
            "scale_grads": False,
        }
        self._schedule: PipelineScheduleSingle | _PipelineScheduleRuntime
        if path := job.parallelism.pipeline_parallel_schedule_csv:
            self._schedule = _PipelineScheduleRuntime(pipeline_stages, **options)
            self._schedule._load_csv(path)
        else:
            kind: Any = get_schedule_class(job.parallelism.pipeline_parallel_schedule)
            is_looped = schedule_of(job).is_looped
            self._schedule = kind(pipeline_stages if is_looped else pipeline_stages[0], **options)

    def forward_backward(self, batch: Batch, num_tokens: Tensor) -> Tensor:
        """One pass through all stages; returns this rank's share of the step's mean loss.

        Gradients are added to those there are. The share is 0 on ranks without the last stage.
        """
        self._num_tokens = num_tokens
        return self._run(self._schedule.step, batch)

    def sum_tied_gradients(self) -> None:
        """Complete the gradient of a weight that two stages share, after a step's last pass."""
        if self._tied is not None:
            self._tied.sum_gradients()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """The loss summed over a batch, on the rank with the last stage; 0 on the others."""
        self._num_tokens = torch.ones((), device=self._device)
        with self._forward_only():
            return self._run(self._schedule.eval, batch)

    def _run(self, step: Callable[..., Any], batch: Batch) -> Tensor:
        inputs = (batch.tokens_BS,) if self._has_first else ()
        losses: list[Tensor] = []
        options: dict[str, Any] = {}
        if self._has_last:
            # torch calls the labels targets, which go to the loss; here they go into the model.
            labels_BS = batch.labels_BS
            options = {"target": labels_BS, "losses": losses, "labels_BS": labels_BS}
        if batch.documents_BS is not None:
            options["documents_BS"] = batch.documents_BS
        step(*inputs, return_outputs=False, **options)
        if not self._has_last:
            return torch.zeros((), device=self._device)
        return torch.stack([loss.detach() for loss in losses]).sum()

    def _microbatch_loss(self, summed_loss: Tensor, labels_BS: Tensor) -> Tensor:
        return summed_loss / self._num_tokens

    @contextlib.contextmanager
    def _forward_only(self) -> Generator[None]:
        """Leave out all but forwards: torch 2.13's `eval` walks through the backwards too, and
        fails there where two neighbouring stages are on one rank (the V-shaped schedules)."""
        schedule = self._schedule
        if isinstance(schedule, PipelineScheduleSingle):
            yield
        else:
            everything = schedule.pipeline_order_with_comms
            schedule.pipeline_order_with_comms = {
                rank: _forwards(actions) for rank, actions in everything.items()
            }
            # The schedule's own gathering ahead is left out as well: FSDP gathers when it needs to.
            schedule.unsharded_stages = {stage.stage_index for stage in schedule._stages}
            yield
            schedule.unsharded_stages = set()
            schedule.pipeline_order_with_comms = everything
        for part in self._parts:
            _reshard(part)


def _forwards(actions: list[_Action]) -> list[_Action]:
    """The forwards among a rank's actions, and what carries their results."""
    flat = [sub for action in actions for sub in (action.sub_actions or (action,))]
    return [action for action in flat if action.computation_type in _FORWARD]


def _reshard(part: nn.Module) -> None:
    """Free the gathered parameters that a forward without a backward has left."""
    for module in part.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _shapes(part: Decoder, job: Job) -> dict[str, Any]:
    """Tensors on the meta device like those that enter and leave a stage, for one microbatch."""
    rows = job.parallelism.pipeline_parallel_microbatch_size
    length = job.training.seq_len // job.derived.cp
    dtype = DTYPES[job.training.mixed_precision_param]

    def like(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)

    tokens_BS = torch.empty((rows, length), dtype=torch.int64, device="meta")
    # Between blocks tensor parallelism splits the sequence once more.
    h_BSD = like(rows, length // job.derived.tp, part.sizes.dim)
    loss = torch.empty((), device="meta", requires_grad=True)
    return {
        "input_args": tokens_BS if part.tok_embeddings is not None else h_BSD,
        "output_args": loss if part.output is not None else h_BSD,
    }
