"""Tensor parallelism: matrices split over the ranks of one axis, hidden states by sequence.

The matrix that enters attention or a feed-forward is split by columns, the one that leaves it by
rows (arXiv:1909.08053), so that a rank works on heads and hidden units of its own. Between them
hidden states are split by sequence (arXiv:2205.05198): norms and residuals cost 1 / tp, and a pair
of all-gather and reduce-scatter does what an all-reduce would. Embedding and output are split by
vocabulary, and the logits stay so for the loss.

Parameters are DTensors on the tp axis, for FSDP, the optimizer and checkpoints; modules compute
with a rank's own plain tensors, as DTensor's dispatch costs more than a small matmul. A weight that
every rank holds whole sees only a part of what it gets its gradient from (of the sequence or of the
heads): its gradient is the sum over ranks. Experts are `expert_parallel`'s: under tensor
parallelism they see a rank's part of the sequence.

Shapes: B batch, S sequence, D model, V vocabulary.
"""

import functools
import warnings
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from titan_recipes.trainer.model.attention import GroupedQueryAttention, MultiHeadLatentAttention
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.feed_forward import FeedForward
from titan_recipes.trainer.model.moe import GroupedExperts

COLUMNS, ROWS, WHOLE = Shard(0), Shard(1), Replicate()

_NORMS = (
    "norm", "attention_norm", "ffn_norm", "post_attention_norm", "post_ffn_norm",
    "q_norm", "k_norm", "q_a_norm", "kv_norm",
)  # fmt: skip
PLACEMENTS: dict[str, Placement] = {
    "tok_embeddings.weight": COLUMNS,
    "output.weight": COLUMNS,
    **{f"{name}.weight": COLUMNS for name in ("wq", "wk", "wv", "wq_b", "wkv_b", "w1", "w3")},
    **{f"{name}.bias": COLUMNS for name in ("wq", "wk", "wv")},
    "attention.sinks": COLUMNS,
    "wo.weight": ROWS,
    "w2.weight": ROWS,
    "wo.bias": WHOLE,
    **{f"{name}.weight": WHOLE for name in ("wq_a", "wkv_a", "gate", *_NORMS)},
    "gate.bias": WHOLE,
}
"""How each parameter lies, by the last two parts of its name."""

ADDED_ONCE = frozenset({"wo.bias"})
"""Added to partial sums: on one rank only."""


def apply_tensor_parallel(model: Decoder, tp_mesh: DeviceMesh, *, enable_async: bool) -> None:
    """Split a model over tp_mesh, in place.

    Blocks then take and return h_BSD of a rank's part of the sequence, S / tp. The output has a
    rank's part of the vocabulary, V / tp: of logits_BSV of the whole sequence, and for its loss.
    enable_async: have torch.compile overlap the collectives with matmuls.
    """
    group = tp_mesh.get_group().group_name
    ranks, rank = tp_mesh.size(), tp_mesh.get_local_rank()
    model.sequence_parts = ranks

    # The same function objects for all layers: compiled code is shared between them by identity.
    def gather_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (GatherSequence.apply(args[0], ranks, group), *args[1:])

    def scatter_output(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return ScatterSum.apply(out, ranks, group)

    split = (GroupedQueryAttention, MultiHeadLatentAttention, FeedForward)
    for name, module in list(model.named_modules()):
        if isinstance(module, GroupedExperts):
            continue
        if isinstance(module, split):
            module.register_forward_pre_hook(gather_input)
            module.register_forward_hook(scatter_output)
        _split_parameters(name, module, tp_mesh)
    if model.tok_embeddings is not None:
        assert isinstance(model.tok_embeddings, RowParallelEmbedding)
        model.tok_embeddings.first_row = rank * model.sizes.vocab_size // ranks
        model.tok_embeddings.register_forward_hook(scatter_output)
    if model.output is not None:
        model.output.register_forward_pre_hook(gather_input)
    model.tie()
    if enable_async:
        overlap_collectives(tp_mesh.get_group())


# --- parameters -----------------------------------------------------------------------------------


def _split_parameters(path: str, module: nn.Module, mesh: DeviceMesh) -> None:
    """Make a module's own parameters DTensors that its code reads as this rank's plain tensors."""
    placements: list[tuple[str, Placement, bool]] = []
    for name, parameter in list(module.named_parameters(recurse=False)):
        rule = ".".join(f"{path}.{name}".split(".")[-2:])
        assert rule in PLACEMENTS, f"no placement for {path}.{name}"
        placement = PLACEMENTS[rule]
        whole = parameter.detach()
        split = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(split, parameter.requires_grad))
        is_here = rule not in ADDED_ONCE or mesh.get_local_rank() == 0
        placements.append((name, placement, is_here))
    if placements:
        base = RowParallelEmbedding if isinstance(module, nn.Embedding) else type(module)
        module.__class__ = _reading_local(base, tuple(placements))


@functools.cache
def _reading_local(base: type, placements: tuple[tuple[str, Placement, bool], ...]) -> type:
    """`base` with parameters that read as local tensors; one class for all layers, see above."""
    properties = {name: _local(name, placement, here) for name, placement, here in placements}
    return type(base.__name__, (base,), properties)


def _local(name: str, placement: Placement, is_here: bool) -> property:
    grads = [Partial() if placement.is_replicate() else placement]

    def read(module: nn.Module) -> Tensor:
        parameter = cast(DTensor, module._parameters[name])
        if parameter.device_mesh.ndim > 1:
            # Between uses FSDP shards it over more axes, and reads it as it is.
            return parameter
        local = parameter.to_local(grad_placements=grads)
        # Times 0, so that the gradient is 0 and not missing: all ranks join in its sum.
        return local if is_here else local * 0

    return property(read)


class RowParallelEmbedding(nn.Embedding):
    """Looks up the rows that a rank has; the sum over ranks fills in the rest."""

    first_row: int

    def forward(self, input: Tensor) -> Tensor:
        weight_VD = self.weight
        row_BS = input - self.first_row
        is_elsewhere_BS = (row_BS < 0) | (row_BS >= len(weight_VD))
        h_BSD = F.embedding(row_BS.masked_fill(is_elsewhere_BS, 0), weight_VD)
        return h_BSD.masked_fill(is_elsewhere_BS.unsqueeze(-1), 0)


# --- collectives ----------------------------------------------------------------------------------

# The operators themselves: torch 2.13 renamed the functions around them. Each is waited for at
# once: a tensor under way that enters a compiled block loses its gradient (torch 2.13 and 2.15).
_ops = torch.ops._c10d_functional


def _gather(x_BSD: Tensor, ranks: int, group: str) -> Tensor:
    """The whole sequence out of the parts of all ranks."""
    stacked = _ops.wait_tensor(_ops.all_gather_into_tensor(x_BSD.contiguous(), ranks, group))
    return torch.cat(stacked.chunk(ranks), dim=1)


def _scatter_sum(x_BSD: Tensor, ranks: int, group: str) -> Tensor:
    """The sum over ranks, of which each keeps its part of the sequence."""
    parts = torch.cat(x_BSD.chunk(ranks, dim=1))
    return _ops.wait_tensor(_ops.reduce_scatter_tensor(parts, "sum", ranks, group))


class GatherSequence(torch.autograd.Function):
    """The whole sequence from each rank's part; what comes back are parts of a sum."""

    @staticmethod
    def forward(ctx: Any, x_BSD: Tensor, ranks: int, group: str) -> Tensor:
        ctx.ranks, ctx.group = ranks, group
        return _gather(x_BSD, ranks, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _scatter_sum(grads[0], ctx.ranks, ctx.group), None, None


class ScatterSum(torch.autograd.Function):
    """The inverse: the sum over ranks, split by sequence."""

    @staticmethod
    def forward(ctx: Any, x_BSD: Tensor, ranks: int, group: str) -> Tensor:
        ctx.ranks, ctx.group = ranks, group
        return _scatter_sum(x_BSD, ranks, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _gather(grads[0], ctx.ranks, ctx.group), None, None


def overlap_collectives(group: dist.ProcessGroup) -> None:
    """Have inductor cut gather and matmuls, or matmul and scatter, into pieces that overlap.

    Its pass leaves alone any group that is not registered for symmetric memory, without a word;
    the function that registers is deprecated as needless, but is not (torch 2.11 to 2.13,
    github.com/pytorch/pytorch/issues/193027).
    """
    # Here, as they import torch's compiler, which other jobs can do without.
    import torch._inductor.config as inductor
    import torch.distributed._symmetric_memory as symmetric_memory

    inductor._micro_pipeline_tp = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        register = symmetric_memory.enable_symm_mem_for_group  # pyright: ignore[reportDeprecated]
        register(group.group_name)
