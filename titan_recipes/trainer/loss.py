"""Cross-entropy of hidden states through the output matrix, chunk by chunk.

Logits are the biggest tensor of a step: 128,256 for each token of Llama 3, in float32 with their
gradient 8 GB for 8,192 tokens. So they are made for some tokens at a time, and with them at once
their gradient, which is all that backward needs: it is multiplied by the two other factors of the
product and forgotten (as in arXiv:2410.10989). Nothing is computed twice.

Under tensor parallelism each rank holds a part of the vocabulary (arXiv:1909.08053); what ranks
exchange is three numbers a token. The caller divides by the tokens of the whole step.

Shapes: B batch, S sequence, T = B * S tokens or a chunk of them, D model, V vocabulary or a rank's
part of it.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from titan_recipes.config.job import Job
from titan_recipes.errors import ConfigError, Problem
from titan_recipes.trainer.parallel.mesh import World

IGNORED = -100
"""A label that does not count."""
CHUNK_BYTES = 512 * 2**20
"""Of the float32 logits of a chunk, where the job does not say how many tokens it has."""

Terms = Callable[..., tuple[Tensor, Tensor]]


def build_loss(job: Job, world: World) -> "HeadLoss":
    """The loss of a job's output matrix on this rank."""
    ranks: dict[str, Any] = {}
    if world.tp_mesh is not None:
        ranks = {
            "ranks": world.tp_mesh.size(),
            "rank": world.tp_mesh.get_local_rank(),
            "group": world.tp_mesh.get_group().group_name,
            "gathers": job.parallelism.disable_loss_parallel,
        }
    terms: Terms = loss_and_grad
    if job.training.loss_kernel == "liger":
        check_liger()
    if job.compile.enable and "loss" in job.compile.components:
        terms = torch.compile(terms, backend=job.compile.backend)
    return HeadLoss(
        chunk_tokens=job.training.loss_chunk_tokens,
        soft_cap=job.model.output_soft_cap,
        z_weight=job.training.z_loss_weight,
        terms=terms,
        with_liger=job.training.loss_kernel == "liger",
        **ranks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLoss:
    """The loss that the output matrix ends in.

    chunk_tokens: tokens whose logits are there at once; -1 = as many as CHUNK_BYTES hold, 0 = all.
    z_weight: of the squared log-sum of a token's exponentials, which keeps logits near 0
    (arXiv:2204.02311, section 5). ranks, rank, group: who holds the parts of the vocabulary;
    gathers: bring them together for the loss instead of its sums. with_liger: by liger-kernel's
    kernels, which wait for the host twice in each pass.
    """

    chunk_tokens: int = -1
    soft_cap: float = 0.0
    z_weight: float = 0.0
    ranks: int = 1
    rank: int = 0
    group: str = ""
    gathers: bool = False
    terms: Terms = field(default_factory=lambda: loss_and_grad)
    with_liger: bool = False

    def __call__(
        self, h_BSD: Tensor, weight_VD: Tensor, labels_BS: Tensor, *, training: bool
    ) -> Tensor:
        """The sum over all tokens whose label counts, in float32, as a scalar.

        training: add the z-loss, if any.
        """
        h_TD = h_BSD.flatten(0, 1)
        z_weight = self.z_weight if training else 0.0
        if self.with_liger:
            return liger_loss(h_TD, weight_VD, labels_BS.flatten(), self.soft_cap, z_weight)
        with_grad = torch.is_grad_enabled()
        return ChunkedLoss.apply(h_TD, weight_VD, labels_BS.flatten(), self, z_weight, with_grad)

    def num_chunks(self, tokens: int, vocabulary: int) -> int:
        """How many chunks so many tokens come in: equal ones, if there is a number that divides."""
        most = self.chunk_tokens or tokens
        if most < 0:
            most = max(1, CHUNK_BYTES // (4 * vocabulary))
        fewest = -(-tokens // most)
        even = (n for n in range(fewest, 2 * fewest) if tokens % n == 0)
        return next(even, fewest)

    def of_chunk(self, logits_TV: Tensor, labels_T: Tensor, z_weight: float) -> Any:
        """(loss, gradient of logits_TV) of some tokens."""
        options = {"soft_cap": self.soft_cap, "z_weight": z_weight}
        if self.ranks == 1:
            return self.terms(logits_TV, labels_T, **options)
        vocabulary = logits_TV.shape[1]
        if not self.gathers:
            return self.terms(
                logits_TV, labels_T, first=self.rank * vocabulary, group=self.group, **options
            )
        loss, grad = self.terms(all_gather(logits_TV, self.ranks, self.group), labels_T, **options)
        return loss, grad[:, self.rank * vocabulary :][:, :vocabulary]


class ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass over the tokens; backward only scales the gradients.

    The matrix's gradient is summed in the type of the matrix, a chunk at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        loss: HeadLoss,
        z_weight: float,
        with_grad: bool,
    ) -> Tensor:
        vocabulary = len(weight_VD) * (loss.ranks if loss.gathers else 1)
        chunks = loss.num_chunks(len(h_TD), vocabulary)
        total = torch.zeros((), device=h_TD.device)
        with_matrix = with_grad and ctx.needs_input_grad[1]
        grad_TD = torch.empty_like(h_TD) if with_grad else None
        grad_VD = None
        rows = range(0, len(h_TD), -(-len(h_TD) // chunks))
        for start in rows:
            part = slice(start, start + rows.step)
            terms, grad_TV = loss.of_chunk(h_TD[part] @ weight_VD.T, labels_T[part], z_weight)
            total += terms
            if grad_TD is not None:
                torch.mm(grad_TV, weight_VD, out=grad_TD[part])
            if grad_VD is not None:
                grad_VD.addmm_(grad_TV.T, h_TD[part])
            elif with_matrix:
                grad_VD = grad_TV.T @ h_TD[part]
            del grad_TV
        ctx.save_for_backward(grad_TD, grad_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_TD, grad_VD = ctx.saved_tensors
        matrix = None if grad_VD is None else grad_VD * grads[0]
        return grad_TD * grads[0], matrix, None, None, None, None


def loss_and_grad(
    logits_TV: Tensor,
    labels_T: Tensor,
    *,
    first: int = 0,
    group: str = "",
    soft_cap: float = 0.0,
    z_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(loss summed over tokens, its gradient by logits_TV in their type), computed in float32.

    first: label of the first column; group: the ranks that hold the others, "" = there are none.
    """
    x_TV = logits_TV
    if soft_cap:
        x_TV = soft_cap * torch.tanh(x_TV.float() / soft_cap)
    column_T = labels_T - first
    is_here_T = (column_T >= 0) & (column_T < x_TV.shape[1])
    column_T1 = column_T.masked_fill(~is_here_T, 0).unsqueeze(1)
    label_T = x_TV.gather(1, column_T1).squeeze(1).float()
    largest_T = x_TV.amax(dim=1).float()
    if group:
        largest_T = all_reduce(largest_T, "max", group)
        total_T = (x_TV.float() - largest_T.unsqueeze(1)).exp().sum(dim=1)
        sums = torch.stack([total_T, label_T.masked_fill(~is_here_T, 0.0)])
        total_T, label_T = all_reduce(sums, "sum", group).unbind()
        log_total_T = largest_T + total_T.log()
        grad_TV = (x_TV.float() - log_total_T.unsqueeze(1)).exp()
    else:
        grad_TV = x_TV.softmax(dim=1, dtype=torch.float32)
        # The largest share is 1 / sum(exp(x - largest)); it never underflows.
        log_total_T = largest_T - grad_TV.amax(dim=1).log()
    counts_T = labels_T != IGNORED
    loss_T = log_total_T - label_T
    if z_weight:
        loss_T = loss_T + z_weight * log_total_T.square()
        grad_TV = grad_TV * (1 + 2 * z_weight * log_total_T).unsqueeze(1)
    grad_TV.scatter_add_(1, column_T1, -is_here_T.float().unsqueeze(1))
    grad_TV *= counts_T.unsqueeze(1)
    if soft_cap:
        grad_TV = grad_TV * (1 - (x_TV / soft_cap).square())
    return loss_T.masked_fill(~counts_T, 0.0).sum(), grad_TV.type_as(logits_TV)


def check_liger() -> None:
    """Raise ConfigError where liger-kernel (arXiv:2410.10989) is not installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        cure = 'pip install liger-kernel, or leave it at "torch"'
        problem = Problem("job.toml", "training.loss_kernel", "liger-kernel is not installed", cure)
        raise ConfigError([problem])


def liger_loss(
    h_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, soft_cap: float, z_weight: float
) -> Tensor:
    """The same by liger-kernel, on CUDA."""
    liger: Any = importlib.import_module("liger_kernel.transformers.functional")
    return liger.liger_fused_linear_cross_entropy(
        h_TD,
        weight_VD,
        labels_T,
        ignore_index=IGNORED,
        lse_square_scale=z_weight,
        reduction="sum",
        softcap=soft_cap or None,
    )


def all_reduce(x: Tensor, reduction: str, group: str) -> Tensor:
    """A tensor reduced over the ranks of a group, by an operator that compile knows."""
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_reduce(x, reduction, group))


def all_gather(x_TV: Tensor, ranks: int, group: str) -> Tensor:
    """The columns of all ranks, side by side."""
    ops = torch.ops._c10d_functional
    stacked = ops.wait_tensor(ops.all_gather_into_tensor(x_TV.contiguous(), ranks, group))
    return torch.cat(stacked.chunk(ranks), dim=1)
