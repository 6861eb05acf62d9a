"""Rotary position embeddings (arXiv:2104.09864) and the ways to stretch them.

Pairs are (i, i + H/2), the layout of Hugging Face's Llama checkpoints, so their weights need no
permuting. A table holds cos in its first half and sin in its second: one tensor to pass to a layer.

Shapes: S positions, H rotated part of a head, N heads.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from titan_recipes.config.flavor import layer_window, rotary_dim
from titan_recipes.config.schema import Model, RopeScaling


class Rope(nn.Module):
    """The decoder's tables, one row a position: always float32, never saved.

    `local_SH` exists where sliding-window layers have a base of their own. Context parallelism
    replaces the rows by those of a rank's positions.
    """

    table_SH: Tensor
    local_SH: Tensor

    def __init__(self, sizes: Model, seq_len: int) -> None:
        super().__init__()
        self.sizes, self.seq_len = sizes, seq_len
        width = rotary_dim(sizes)
        self.register_buffer("table_SH", torch.empty(seq_len, width), persistent=False)
        if sizes.rope_theta_local:
            self.register_buffer("local_SH", torch.empty(seq_len, width), persistent=False)

    def init_buffers(self) -> None:
        """Fill the tables on their own device, in float32 whatever the model was cast to."""
        sizes, device = self.sizes, self.table_SH.device
        self.table_SH = rope_table(
            rotary_dim(sizes), self.seq_len, sizes.rope_theta, sizes.rope_scaling, device
        )
        if sizes.rope_theta_local:
            self.local_SH = rope_table(
                rotary_dim(sizes), self.seq_len, sizes.rope_theta_local, None, device
            )

    def forward(self, layer: int) -> Tensor:
        """The table of a layer [S, H]."""
        is_local = self.sizes.rope_theta_local and layer_window(self.sizes, layer)
        return self.local_SH if is_local else self.table_SH


def rope_table(
    width: int, seq_len: int, theta: float, scaling: RopeScaling | None, device: torch.device
) -> Tensor:
    """float32 [S, width]: cos and sin of each position's width/2 angles, side by side."""
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    frequencies = 1.0 / theta ** (exponents / width)
    temperature = 1.0
    if scaling is not None:
        frequencies = stretch(frequencies, scaling, theta)
        temperature = rotated_temperature(scaling)
    positions = torch.arange(seq_len, device=device, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * temperature


def stretch(frequencies: Tensor, scaling: RopeScaling, theta: float) -> Tensor:
    """The frequencies, those of long wavelengths divided by `factor`."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        # Linear in the number of turns that fit into the trained length.
        turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
    else:
        kept = 1 - yarn_ramp(frequencies, scaling, theta)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def yarn_ramp(frequencies: Tensor, scaling: RopeScaling, theta: float) -> Tensor:
    """0 where frequencies stay, 1 where they are stretched, linear in the dimension between.

    arXiv:2309.00071, section 3.2, with the ramp over pairs of its code: pair d turns
    original_max_seq_len / (2 pi theta ** (2 d / H)) times in the trained length, and the borders
    are the d at which that is beta_fast and beta_slow.
    """
    pairs = len(frequencies)

    def dimension(turns: float) -> float:
        wavelength = scaling.original_max_seq_len / (2 * math.pi * turns)
        return pairs * math.log(wavelength) / math.log(theta)

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    dimensions = torch.arange(pairs, device=frequencies.device, dtype=torch.float32)
    return ((dimensions - first) / max(last - first, 1e-3)).clamp(0, 1)


def yarn_temperature(scaling: RopeScaling, weight: float) -> float:
    """What queries and keys are multiplied by: 0.1 weight log(factor) + 1 (eq. 22)."""
    return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def rotated_temperature(scaling: RopeScaling) -> float:
    """The factor on the tables; what `score_temperature` gives to whole heads is taken out."""
    if scaling.kind != "yarn":
        return 1.0
    whole = yarn_temperature(scaling, scaling.mscale_all_dim)
    return yarn_temperature(scaling, scaling.mscale or 1.0) / whole


def score_temperature(scaling: RopeScaling | None) -> float:
    """The factor on query-key products that covers the part of heads that is not rotated."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    return yarn_temperature(scaling, scaling.mscale_all_dim) ** 2


def apply_rope(x_BSNH: Tensor, rope_SH: Tensor) -> Tensor:
    """Turn each head by its position; computed in float32, returned in the input's type.

    rope_SH has at least S rows.
    """
    cos_S1H, sin_S1H = rope_SH[: x_BSNH.shape[1]].unsqueeze(1).chunk(2, dim=-1)
    return Turn.apply(x_BSNH, cos_S1H, sin_S1H)


class Turn(torch.autograd.Function):
    """The rotation; its gradient is turned back, which autograd would find in twice as many steps.

    Here H is half a head.
    """

    @staticmethod
    def forward(ctx: Any, x_BSNH: Tensor, cos_S1H: Tensor, sin_S1H: Tensor) -> Tensor:
        ctx.save_for_backward(cos_S1H, sin_S1H)
        return turned(x_BSNH, cos_S1H, sin_S1H)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_S1H, sin_S1H = ctx.saved_tensors
        return turned(grads[0], cos_S1H, -sin_S1H), None, None


def turned(x_BSNH: Tensor, cos_S1H: Tensor, sin_S1H: Tensor) -> Tensor:
    """Each pair of a left and a right number, turned. H of the tables is half a head."""
    x_BSNH, dtype = x_BSNH.float(), x_BSNH.dtype
    out_BSNH = x_BSNH * torch.cat([cos_S1H, cos_S1H], dim=-1)
    (left, right), (new_left, new_right) = x_BSNH.chunk(2, dim=-1), out_BSNH.chunk(2, dim=-1)
    new_left.addcmul_(right, sin_S1H, value=-1)
    new_right.addcmul_(left, sin_S1H)
    return out_BSNH.to(dtype)
