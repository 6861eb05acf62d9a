"""Hugging Face weights into a model that may be sharded: each rank reads its own slices.

No rank sees a whole tensor that it holds a part of, and nothing travels between ranks.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from titan_recipes.config.schema import Model
from titan_recipes.trainer.hf.weights import ModelWeights


@torch.no_grad()
def load_into(model_state: dict[str, Tensor], sizes: Model, folder: Path) -> list[str]:
    """Fill the tensors and DTensors of a model's state dict from a folder of safetensors.

    model_state: by the names of an unparallelised model; a pipeline stage gives its own. The
    folder must fit the whole model all the same. Returns the names of stored tensors that no model
    of ours has a use for. Raises what `ModelWeights` does.
    """
    weights = ModelWeights(folder, sizes)
    for name, target in model_state.items():
        local = target.to_local() if isinstance(target, DTensor) else target
        local.copy_(weights.read(name, local_slices(target)))
    return weights.ignored


def local_slices(target: Tensor) -> tuple[slice, ...]:
    """Which part of the whole tensor this rank holds."""
    sizes, offsets = tuple(target.shape), (0,) * target.dim()
    if isinstance(target, DTensor):
        sizes, offsets = compute_local_shape_and_global_offset(
            target.shape, target.device_mesh, target.placements
        )
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
