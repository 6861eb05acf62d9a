"""The gated feed-forward (arXiv:2002.05202) and its activations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titan_recipes.config.schema import Model

CLAMP_LIMIT = 7.0
CLAMP_SLOPE = 1.702
"""Of gpt-oss's activation; with this slope x * sigmoid(slope * x) is close to GELU."""


def gated(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    """The hidden layer: the activated gate times the other branch, element by element."""
    if activation == "silu":
        return F.silu(gate) * up
    if activation == "gelu_tanh":
        return F.gelu(gate, approximate="tanh") * up
    assert activation == "clamped_swiglu"
    gate, up = gate.clamp(max=CLAMP_LIMIT), up.clamp(-CLAMP_LIMIT, CLAMP_LIMIT)
    return gate * torch.sigmoid(CLAMP_SLOPE * gate) * (up + 1)


class FeedForward(nn.Module):
    """w2(activation(w1 x) * w3 x)."""

    def __init__(self, sizes: Model, hidden: int) -> None:
        super().__init__()
        self.activation = sizes.activation
        self.w1 = nn.Linear(sizes.dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, sizes.dim, bias=False)
        self.w3 = nn.Linear(sizes.dim, hidden, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.w2(gated(self.activation, self.w1(x_BSD), self.w3(x_BSD)))
