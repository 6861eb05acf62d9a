"""This rank's shards of parameters, tensors laid out like them, and the update of one of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from titan_recipes.trainer.quantize import own_memory


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, sharing its memory; any other tensor as it is.

    A weight that FSDP gathers in float8 is the tensor of its own type that it holds.
    """
    shard = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own_memory(shard)


def laid_out_like(parameter: Tensor, shard: Tensor, shape: Sequence[int]) -> Tensor:
    """A rank's shard as part of a tensor of `shape`, which is split as a parameter is.

    It shares the shard's memory, which may be the host's: `DTensor.from_local` would copy it to the
    device of the mesh.
    """
    if not isinstance(parameter, DTensor):
        return shard
    meta = torch.empty(shape, dtype=shard.dtype, device="meta")
    tensor_meta = TensorMeta(meta.shape, meta.stride(), meta.dtype)
    spec = DTensorSpec(parameter.device_mesh, parameter.placements, tensor_meta=tensor_meta)
    return DTensor(shard, spec, requires_grad=False)  # pyright: ignore


def step_one(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter
) -> None:
    """Update one parameter, with the settings of a group that may be another optimizer's."""
    groups = optimizer.param_groups
    optimizer.param_groups = [{**optimizer.defaults, **group, "params": [parameter]}]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups
