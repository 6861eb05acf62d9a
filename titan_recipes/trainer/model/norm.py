"""The norms: root mean square (arXiv:1910.07467), Gemma's offset form of it, and LayerNorm."""

import torch.nn.functional as F
from torch import Tensor, nn

from titan_recipes.config.schema import Model


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight is taken in the input's type.

    Autocast leaves the weight float32, and torch has no fused norm for two types.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.type_as(x), self.eps)


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm that multiplies by 1 + weight, in float32, and whose weight begins at 0 (Gemma).

    bf16 has 8 bits: 1 + weight would round away what is learned of a small weight.
    """

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + self.weight.float()
        return F.rms_norm(x.float(), self.normalized_shape, scale, self.eps).type_as(x)


def build_norm(sizes: Model, width: int) -> nn.Module:
    """The flavor's norm over the last `width` numbers; its only parameter is `weight`, if any."""
    if sizes.norm == "rmsnorm":
        kind = OffsetRMSNorm if sizes.norm_unit_offset else RMSNorm
        return kind(width, eps=sizes.norm_eps)
    affine = sizes.norm == "layernorm"
    return nn.LayerNorm(width, eps=sizes.norm_eps, elementwise_affine=affine, bias=False)
