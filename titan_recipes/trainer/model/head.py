"""The output matrix: logits, or with labels their loss, for which the logits never exist whole.

Shapes: B batch, S sequence, D model, V vocabulary.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from titan_recipes.config.schema import Model


class LossOfMatrix(Protocol):
    """The loss of hidden states through a matrix, summed over tokens: see `trainer.loss`."""

    def __call__(
        self, h_BSD: Tensor, weight_VD: Tensor, labels_BS: Tensor, *, training: bool
    ) -> Tensor: ...


class Head(nn.Linear):
    """A linear whose loss is computed inside its forward, where sharding has the matrix whole."""

    loss: LossOfMatrix | None = None
    """Set from outside, by what trains the model."""

    def __init__(self, sizes: Model) -> None:
        super().__init__(sizes.dim, sizes.vocab_size, bias=False)
        self.soft_cap = sizes.output_soft_cap

    def forward(self, input: Tensor, labels_BS: Tensor | None = None) -> Tensor:
        """logits_BSV of h_BSD; with labels the loss, a scalar."""
        if labels_BS is not None:
            assert self.loss is not None
            return self.loss(input, self.weight, labels_BS, training=self.training)
        logits_BSV, cap = super().forward(input), self.soft_cap
        return cap * torch.tanh(logits_BSV / cap) if cap else logits_BSV
