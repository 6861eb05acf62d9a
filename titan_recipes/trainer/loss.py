"""Cross-entropy, summed: the caller divides by the tokens of the whole step."""

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""A label that does not count."""


def summed_cross_entropy(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """The sum over all tokens whose label counts, in float32, as a scalar."""
    logits, labels = logits_BSV.flatten(0, 1).float(), labels_BS.flatten()
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
