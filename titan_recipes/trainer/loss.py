"""Cross-entropy, summed: the caller divides by the tokens of the whole step.

Under loss parallel each rank holds the logits of its part of the vocabulary (arXiv:1909.08053): the
whole tensor, the biggest there is, never exists. What the ranks exchange is three numbers a token.

Shapes: B batch, S sequence, T = B * S tokens, V vocabulary or a rank's part of it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titan_recipes.config.job import Job
from titan_recipes.trainer.parallel.mesh import World

IGNORED = -100
"""A label that does not count."""

LossFn = Callable[[Tensor, Tensor], Tensor]


def build_loss(job: Job, world: World) -> LossFn:
    """The loss of logits_BSV, as the model returns them, and labels_BS: a scalar sum."""
    loss_fn: LossFn = summed_cross_entropy
    if world.tp_mesh is not None and not job.parallelism.disable_loss_parallel:
        rank, group = world.tp_mesh.get_local_rank(), world.tp_mesh.get_group().group_name
        loss_fn = partial(vocabulary_parallel_cross_entropy, rank=rank, group=group)
    if job.compile.enable and "loss" in job.compile.components:
        loss_fn = torch.compile(loss_fn, backend=job.compile.backend)
    return loss_fn


def summed_cross_entropy(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """The sum over all tokens whose label counts, in float32, as a scalar."""
    logits, labels = logits_BSV.flatten(0, 1).float(), labels_BS.flatten()
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)


def vocabulary_parallel_cross_entropy(
    logits_BSV: Tensor, labels_BS: Tensor, *, rank: int, group: str
) -> Tensor:
    """The same from a rank's part of the vocabulary, the rank-th of equal ones, on every rank."""
    return VocabularyParallel.apply(logits_BSV.flatten(0, 1), labels_BS.flatten(), rank, group)


class VocabularyParallel(torch.autograd.Function):
    """log(sum(exp(logits))) - logit of the label, where sums and label are spread over ranks.

    The logits are kept as they came; backward makes their softmax anew, in float32.
    """

    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, labels_T: Tensor, rank: int, group: str) -> Tensor:
        vocabulary = logits_TV.shape[1]
        column_T = labels_T - rank * vocabulary
        is_here_T = (column_T >= 0) & (column_T < vocabulary)
        column_T = column_T.masked_fill(~is_here_T, 0)

        logits = logits_TV.float()
        largest_T = all_reduce(logits.amax(dim=1), "max", group)
        label_T = logits.gather(1, column_T.unsqueeze(1)).squeeze(1)
        label_T = (label_T - largest_T).masked_fill(~is_here_T, 0.0)
        total_T = (logits - largest_T.unsqueeze(1)).exp().sum(dim=1)
        total_T, label_T = all_reduce(torch.stack([total_T, label_T]), "sum", group).unbind()

        counts_T = labels_T != IGNORED
        ctx.save_for_backward(logits_TV, largest_T + total_T.log(), column_T, is_here_T, counts_T)
        return (total_T.log() - label_T).masked_fill(~counts_T, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits_TV, log_total_T, column_T, is_here_T, counts_T = ctx.saved_tensors
        grad_TV = (logits_TV.float() - log_total_T.unsqueeze(1)).exp()
        grad_TV.scatter_add_(1, column_T.unsqueeze(1), -is_here_T.float().unsqueeze(1))
        grad_TV *= (counts_T * grads[0]).unsqueeze(1)
        return grad_TV.type_as(logits_TV), None, None, None


def all_reduce(x: Tensor, reduction: str, group: str) -> Tensor:
    """A tensor reduced over the ranks of a group, by an operator that compile knows."""
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_reduce(x, reduction, group))
