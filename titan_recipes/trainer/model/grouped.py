"""Grouped matrix products: slices of rows, each times a matrix of its own.

torch has a kernel for it, in bf16 with rows of a multiple of 16 bytes; its shape function refuses
any other type under compile (torch 2.13). For the rest, a loop over the slices with the same
numbers; where the slices end is data, so the loop is an operator that compile does not look into.

Shapes: T rows, sorted by expert; E experts; I and O, width in and out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_mm(x_TI: Tensor, w_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """out_TO: rows ends[e - 1] to ends[e] of x times w[e] transposed. ends_E: int32."""
    is_aligned = all(size % 8 == 0 for size in w_EOI.shape[1:])
    if x_TI.dtype == w_EOI.dtype == torch.bfloat16 and is_aligned:
        return F.grouped_mm(x_TI, w_EOI.transpose(-2, -1), offs=ends_E)
    return looped_mm(x_TI, w_EOI, ends_E)


def grouped_weight_grad(grad_TO: Tensor, x_TI: Tensor, ends_E: Tensor) -> Tensor:
    """grad_EOI of `grouped_mm`: each matrix's from its own rows."""
    is_aligned = all(size % 8 == 0 for size in (grad_TO.shape[1], x_TI.shape[1]))
    if x_TI.dtype == grad_TO.dtype == torch.bfloat16 and is_aligned:
        return F.grouped_mm(grad_TO.transpose(-2, -1), x_TI, offs=ends_E)
    return looped_mm_weight_grad(grad_TO, x_TI, ends_E)


def _slices(ends_E: Tensor) -> list[slice]:
    ends = ends_E.tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@torch.library.custom_op("titan_recipes::looped_mm", mutates_args=())
def looped_mm(x_TI: Tensor, w_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """`grouped_mm` for any type and width; rows past the last end are 0."""
    out_TO = x_TI.new_zeros(len(x_TI), w_EOI.shape[1])
    for expert, rows in enumerate(_slices(ends_E)):
        torch.mm(x_TI[rows], w_EOI[expert].T, out=out_TO[rows])
    return out_TO


@torch.library.custom_op("titan_recipes::looped_mm_weight_grad", mutates_args=())
def looped_mm_weight_grad(grad_TO: Tensor, x_TI: Tensor, ends_E: Tensor) -> Tensor:
    """grad_EOI: of each matrix, from its own rows."""
    out_EOI = x_TI.new_zeros(len(ends_E), grad_TO.shape[1], x_TI.shape[1])
    for expert, rows in enumerate(_slices(ends_E)):
        torch.mm(grad_TO[rows].T, x_TI[rows], out=out_EOI[expert])
    return out_EOI


@looped_mm.register_fake
def _(x_TI: Tensor, w_EOI: Tensor, ends_E: Tensor) -> Tensor:
    return x_TI.new_empty(len(x_TI), w_EOI.shape[1])


@looped_mm_weight_grad.register_fake
def _(grad_TO: Tensor, x_TI: Tensor, ends_E: Tensor) -> Tensor:
    return x_TI.new_empty(len(ends_E), grad_TO.shape[1], x_TI.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor, Tensor, None]:
    x_TI, w_EOI, ends_E = ctx.saved_tensors
    grad_TI = looped_mm(grad_TO, w_EOI.transpose(-2, -1), ends_E)
    return grad_TI, looped_mm_weight_grad(grad_TO, x_TI, ends_E), None


looped_mm.register_autograd(_backward, setup_context=_keep)
