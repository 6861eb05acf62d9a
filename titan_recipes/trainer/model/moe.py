"""Mixture of experts: a router sends each token to a few of many feed-forwards.

Copies of the tokens are sorted by expert, so that each expert's matrix product is one slice of a
grouped product; results go back in token order by a gather, never by atomic adds, so that a run
repeats bit by bit. Load is balanced by a bias on the choice (arXiv:2408.15664), by a loss over each
sequence (arXiv:2412.19437), or not at all. Expert parallelism replaces `dispatcher`.

Shapes: B batch, S sequence, T = B * S tokens or their copies, D model, E experts, K experts a token
visits, F hidden width of an expert.
"""

from typing import Any

import torch
from torch import Tensor, nn

from titan_recipes.config.schema import Model, MoE
from titan_recipes.trainer.model.feed_forward import FeedForward, gated
from titan_recipes.trainer.model.grouped import grouped_mm


class Router(nn.Module):
    """Scores every expert for every token and chooses K."""

    selection_bias: Tensor | None

    def __init__(self, dim: int, moe: MoE) -> None:
        super().__init__()
        self.moe = moe
        self.force_balance = False
        """For measurements: experts take turns, whatever the scores."""
        self.gate = nn.Linear(dim, moe.num_experts, bias=moe.router_bias)
        has_bias = moe.load_balance_coeff > 0 or moe.score_func == "sigmoid"
        bias = torch.zeros(moe.num_experts) if has_bias else None
        self.register_buffer("selection_bias", bias)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(weights_BSK, experts_BSK, scores_BSE), weights and scores in float32."""
        moe, logits_BSE = self.moe, self.gate(x_BSD).float()
        scores_BSE = (
            logits_BSE.softmax(dim=-1) if moe.score_func == "softmax" else logits_BSE.sigmoid()
        )
        experts_BSK = self.choose(scores_BSE.detach())
        weights_BSK = scores_BSE.gather(-1, experts_BSK)
        if moe.normalize_top_k:
            weights_BSK = weights_BSK / (weights_BSK.sum(dim=-1, keepdim=True) + 1e-20)
        return weights_BSK * moe.route_scale, experts_BSK, scores_BSE

    def choose(self, scores_BSE: Tensor) -> Tensor:
        """experts_BSK: the best by score and selection bias, out of the best groups."""
        moe = self.moe
        if self.force_balance:
            B, S, E = scores_BSE.shape
            turns = torch.arange(B * S * moe.experts_per_token, device=scores_BSE.device)
            return (turns % E).view(B, S, -1)
        if self.selection_bias is not None:
            scores_BSE = scores_BSE + self.selection_bias
        if moe.num_groups > 1:
            grouped = scores_BSE.unflatten(-1, (moe.num_groups, -1))
            best = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
            chosen = best.topk(moe.num_limited_groups, dim=-1).indices
            is_open = torch.zeros_like(best, dtype=torch.bool).scatter(-1, chosen, True)
            scores_BSE = grouped.masked_fill(~is_open.unsqueeze(-1), -torch.inf).flatten(-2)
        return scores_BSE.topk(moe.experts_per_token, dim=-1).indices


class GroupedExperts(nn.Module):
    """The routed experts, their matrices stacked: w1, w3 [E, F, D], w2 [E, D, F], b1, b2, b3.

    How many experts there are is read from w1: under expert parallelism a rank holds E / ep, and
    `local` takes them out of a weight of all.
    """

    def __init__(self, sizes: Model, moe: MoE) -> None:
        super().__init__()
        self.activation = sizes.activation
        self.local: nn.Module = nn.Identity()
        self.grouped_mm = grouped_mm
        """Conversion to float8 replaces it."""
        experts, hidden, dim = moe.num_experts, moe.ffn_dim, sizes.dim
        self.w1 = nn.Parameter(torch.empty(experts, hidden, dim))
        self.w2 = nn.Parameter(torch.empty(experts, dim, hidden))
        self.w3 = nn.Parameter(torch.empty(experts, hidden, dim))
        self.b1 = nn.Parameter(torch.empty(experts, hidden)) if moe.expert_bias else None
        self.b2 = nn.Parameter(torch.empty(experts, dim)) if moe.expert_bias else None
        self.b3 = nn.Parameter(torch.empty(experts, hidden)) if moe.expert_bias else None

    def forward(self, x_TD: Tensor, counts_E: Tensor) -> Tensor:
        """out_TD. Rows are sorted by expert; counts_E: how many are of each."""
        ends_E = counts_E.cumsum(0).int()
        gate_TF = self.product(x_TD, self.w1, self.b1, ends_E)
        up_TF = self.product(x_TD, self.w3, self.b3, ends_E)
        return self.product(gated(self.activation, gate_TF, up_TF), self.w2, self.b2, ends_E)

    def product(self, x_TI: Tensor, w_EOI: Tensor, b_EO: Tensor | None, ends_E: Tensor) -> Tensor:
        """Each row times the matrix of its expert, plus its bias."""
        out_TO = self.grouped_mm(x_TI, self.local(w_EOI), ends_E)
        if b_EO is None:
            return out_TO
        bias_EO: Tensor = self.local(b_EO)
        rows = torch.arange(len(x_TI), device=x_TI.device)
        expert_T = torch.searchsorted(ends_E, rows, right=True)
        experts = torch.arange(len(bias_EO), device=x_TI.device)
        # As a product with ones, the bias gradient sums in float32 and in a fixed order.
        is_expert_TE = (expert_T.unsqueeze(-1) == experts).to(x_TI.dtype)
        return out_TO + is_expert_TE @ bias_EO.to(x_TI.dtype)


class LocalDispatcher(nn.Module):
    """All experts are here: hand the sorted rows to them."""

    def forward(self, x_TD: Tensor, counts_E: Tensor, experts: GroupedExperts) -> Tensor:
        return experts(x_TD, counts_E)


class Moe(nn.Module):
    """Routed experts, and a shared feed-forward that every token visits.

    tokens_per_expert_E: tokens sent to each expert in training since it was last zeroed.
    balance_factor: 1 / (tokens of the whole step), set before a step's first forward; the balance
    loss of a step is aux_loss_weight * balance_factor * sum over sequences of (S * loss).
    sequence_counts: sums counts_BE over the parts of a sequence; context parallelism replaces it.
    """

    tokens_per_expert_E: Tensor
    balance_factor: Tensor

    def __init__(self, sizes: Model, moe: MoE) -> None:
        super().__init__()
        self.aux_loss_weight = moe.aux_loss_weight
        self.router = Router(sizes.dim, moe)
        self.experts = GroupedExperts(sizes, moe)
        self.dispatcher: nn.Module = LocalDispatcher()
        self.sequence_counts: nn.Module = nn.Identity()
        width = moe.num_shared_experts * moe.ffn_dim
        self.shared = FeedForward(sizes, width) if width else None
        counts_E = torch.zeros(moe.num_experts, dtype=torch.int64)
        self.register_buffer("tokens_per_expert_E", counts_E, persistent=False)
        self.register_buffer("balance_factor", torch.zeros(()), persistent=False)

    def init_buffers(self) -> None:
        """Zero every buffer where it is, in float32 whatever the model was cast to."""
        self.tokens_per_expert_E = torch.zeros_like(self.tokens_per_expert_E)
        self.balance_factor = torch.zeros_like(self.balance_factor, dtype=torch.float32)
        bias_E = self.router.selection_bias
        if bias_E is not None:
            self.router.selection_bias = torch.zeros_like(bias_E, dtype=torch.float32)

    def forward(self, x_BSD: Tensor) -> Tensor:
        weights_BSK, experts_BSK, scores_BSE = self.router(x_BSD)
        experts = torch.arange(scores_BSE.shape[-1], device=x_BSD.device)
        counts_BE = (experts_BSK.unsqueeze(-1) == experts).sum(dim=(1, 2))
        if self.training:
            if not is_recomputing():
                with torch.no_grad():
                    self.tokens_per_expert_E.add_(counts_BE.sum(dim=0))
            if self.aux_loss_weight:
                loss = balance_loss(scores_BSE, self.sequence_counts(counts_BE))
                factor = self.aux_loss_weight * self.balance_factor
                weights_BSK = AddLoss.apply(weights_BSK, loss, factor)

        copies = experts_BSK.shape[-1]
        order_T = experts_BSK.flatten().argsort(stable=True)
        place_T = order_T.argsort()
        sorted_TD = Rearrange.apply(x_BSD.flatten(0, 1), order_T, place_T, copies)
        out_TD = self.dispatcher(sorted_TD, counts_BE.sum(dim=0), self.experts)
        out_TD = Rearrange.apply(out_TD, place_T, order_T, 1)
        out_BSKD = out_TD.view(*experts_BSK.shape, -1)
        out_BSD = (out_BSKD.float() * weights_BSK.unsqueeze(-1)).sum(dim=2).type_as(x_BSD)
        return out_BSD if self.shared is None else out_BSD + self.shared(x_BSD)


def balance_loss(scores_BSE: Tensor, counts_BE: Tensor) -> Tensor:
    """Sum over sequences of S * (sum over experts of f * P), arXiv:2412.19437, eq. 17 to 20.

    f: share of a sequence's tokens that chose the expert, 1 at balance; P: the expert's mean share
    of a token's scores. As S * P is a sum over tokens, parts of a sequence add up, given counts of
    the whole.
    """
    shares_BSE = scores_BSE / scores_BSE.sum(dim=-1, keepdim=True)
    experts = counts_BE.shape[-1]
    frequency_BE = counts_BE.float() * experts / counts_BE.sum(dim=-1, keepdim=True)
    return (shares_BSE * frequency_BE.unsqueeze(1)).sum()


def is_recomputing() -> bool:
    """Whether this forward repeats one for activation checkpointing, inside a backward.

    A compiled graph applies the change of a buffer once, wherever it recomputes.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class AddLoss(torch.autograd.Function):
    """x, unchanged; backward gives `loss` the gradient `factor`, as if the step's loss had it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (factor,) = ctx.saved_tensors
        return grads[0], factor, None


class Rearrange(torch.autograd.Function):
    """Row i is x[order[i] // copies]; the gradient gathers by `place`, the inverse of `order`.

    Autograd's own gradient of indexing adds atomically.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_T: Tensor, place_T: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(place_T)
        ctx.copies = copies
        return x_TD[order_T // copies]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (place_T,) = ctx.saved_tensors
        grad_TD = grads[0][place_T]
        if ctx.copies > 1:
            grad_TD = grad_TD.unflatten(0, (-1, ctx.copies)).sum(dim=1)
        return grad_TD, None, None, None
