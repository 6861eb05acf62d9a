"""A linear whose products are in microscaled float8: blocks of 32 numbers share a scale.

The products are torchao's (`mx_mm`), on Blackwell GPUs, or emulated anywhere. torchao's own module
fixes the kernel of the cast along dim 1, which is a key of ours; otherwise it is the same.
"""

import torch
from torch import Tensor, nn
from torchao.prototype.moe_training.mxfp8_linear import mx_mm
from torchao.prototype.mx_formats.config import (
    MXFP8Dim0CastKernelChoice,
    MXFP8Dim1CastKernelChoice,
    ScaleCalculationMode,
)
from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

from titan_recipes.config.quantize import MX_EMULATED
from titan_recipes.config.schema import MXLinear as Settings

BLOCK_SIZE = 32


class MXLinear(nn.Linear):
    """A linear in mxfp8; takes the parameters of one over."""

    def __init__(self, base: nn.Linear, settings: Settings) -> None:
        has_bias = base.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
        super().__init__(base.in_features, base.out_features, bias=has_bias, device="meta")
        self.weight, self.bias, self.has_bias = base.weight, base.bias, has_bias
        emulated = settings.recipe_name == MX_EMULATED
        dim1 = "torch" if emulated else settings.mxfp8_dim1_cast_kernel_choice
        rounds_up = settings.recipe_name.endswith("_rceil")
        self.options = (
            BLOCK_SIZE,
            KernelPreference.EMULATED if emulated else KernelPreference.AUTO,
            MXFP8Dim0CastKernelChoice.TORCH if emulated else MXFP8Dim0CastKernelChoice.TRITON,
            MXFP8Dim1CastKernelChoice(dim1),
            ScaleCalculationMode.RCEIL if rounds_up else ScaleCalculationMode.FLOOR,
            False,  # weight gradients are in mxfp8 too
        )

    def forward(self, input: Tensor) -> Tensor:
        element = torch.float8_e4m3fn
        output = mx_mm.apply(input, self.weight, element, element, element, *self.options)
        return output + self.bias.to(output.dtype) if self.has_bias else output
