"""Grouped products in float8: `grouped_mm` with operands cast row by row.

Each row of tokens and each output row of a matrix has a scale, a power of two (torchao's rowwise
recipe). Weight gradients stay in the type of their operands: there the groups lie along the inner
side of the product, which float8 wants in multiples of 16 tokens for every expert, and how tokens
fall is data; the padding would cost a copy of them. So two of three products are in float8.

Shapes: T rows, sorted by expert; E experts; I and O, width in and out.
"""

from typing import Any

import torch
from torch import Tensor

from titan_recipes.trainer.model.grouped import grouped_weight_grad, looped_mm

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
_TINY = 1e-12
"""Stands in for the largest value of a row of zeros."""


def float8_mm(x_TI: Tensor, w_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """`grouped_mm` on a GPU's float8 units; widths are multiples of 16."""
    return _GroupedFloat8.apply(x_TI, w_EOI, ends_E, False)


def emulated_mm(x_TI: Tensor, w_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """What `float8_mm` gives, multiplied in float32."""
    return _GroupedFloat8.apply(x_TI, w_EOI, ends_E, True)


def cast_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x in float8, what to multiply its rows with to have x back, in float32, without a dim)."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True).double().clamp(min=_TINY)
    scale = torch.exp2(torch.floor(torch.log2(LARGEST / largest))).float()
    return (x * scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale.reciprocal().squeeze(-1)


def _product(x_TI: Tensor, w_EOI: Tensor, ends_E: Tensor, emulate: bool) -> Tensor:
    x8_TI, x_scale_T = cast_rows(x_TI)
    w8_EOI, w_scale_EO = cast_rows(w_EOI)
    if emulate:
        x = x8_TI.float() * x_scale_T.unsqueeze(-1)
        w = w8_EOI.float() * w_scale_EO.unsqueeze(-1)
        return looped_mm(x, w, ends_E).type_as(x_TI)
    return torch._scaled_grouped_mm(
        x8_TI.contiguous(),
        w8_EOI.contiguous().transpose(-2, -1),
        x_scale_T,
        w_scale_EO,
        offs=ends_E,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    ).type_as(x_TI)


class _GroupedFloat8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, w_EOI: Tensor, ends_E: Tensor, emulate: bool) -> Tensor:
        ctx.save_for_backward(x_TI, w_EOI, ends_E)
        ctx.emulate = emulate
        return _product(x_TI, w_EOI, ends_E, emulate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_TI, w_EOI, ends_E = ctx.saved_tensors
        grad_TO = grads[0].contiguous()
        grad_TI = _product(grad_TO, w_EOI.transpose(-2, -1), ends_E, ctx.emulate)
        return grad_TI, grouped_weight_grad(grad_TO, x_TI, ends_E), None, None
