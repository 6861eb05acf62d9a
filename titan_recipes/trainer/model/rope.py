"""Rotary position embeddings (arXiv:2104.09864) with Llama 3.1's frequency scaling.

Pairs are (i, i + H/2), the layout of Hugging Face checkpoints, so their weights need no permuting.
The table holds cos in its first half and sin in its second: one tensor to pass to every layer.
"""

import math

import torch
from torch import Tensor

from titan_recipes.config.schema import Model, RopeScaling


def rope_table(sizes: Model, seq_len: int, device: torch.device) -> Tensor:
    """float32 [S, H]: cos and sin of each position's H/2 angles, side by side."""
    exponents = torch.arange(0, sizes.head_dim, 2, device=device, dtype=torch.float32)
    frequencies = 1.0 / sizes.rope_theta ** (exponents / sizes.head_dim)
    if sizes.rope_scaling is not None:
        frequencies = scale_frequencies(frequencies, sizes.rope_scaling)
    positions = torch.arange(seq_len, device=device, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def scale_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Stretch long wavelengths by `factor`, keep short ones, blend linearly between."""
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = (scaling.original_max_seq_len / wavelengths - low) / (high - low)
    blend = blend.clamp(0, 1)
    return frequencies * (blend + (1 - blend) / scaling.factor)


def apply_rope(x_BSNH: Tensor, rope_SH: Tensor) -> Tensor:
    """Turn each head by its position; computed in float32, returned in the input's type."""
    cos_S1H, sin_S1H = rope_SH.unsqueeze(1).chunk(2, dim=-1)
    left, right = x_BSNH.float().chunk(2, dim=-1)
    turned = (left * cos_S1H - right * sin_S1H, right * cos_S1H + left * sin_S1H)
    return torch.cat(turned, dim=-1).type_as(x_BSNH)
