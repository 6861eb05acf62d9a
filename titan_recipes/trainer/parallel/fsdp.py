"""FSDP2: parameters, gradients and optimizer state sharded over ranks, gathered block by block.

Gradients are summed, not averaged: the loss is already divided by the tokens of the whole step, so
that its gradient does not depend on how many ranks or passes the batch was split into.
"""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from titan_recipes.trainer.model.decoder import Decoder


def apply_fsdp(
    model: Decoder,
    mesh: DeviceMesh,
    *,
    param_dtype: torch.dtype,
    reduce_dtype: torch.dtype,
    reshard_after_forward: str,
) -> None:
    """Shard a model in place, one group of collectives per block.

    reshard_after_forward: "always" and "default" free gathered parameters after forward and gather
    them again for backward; "never" keeps them, which saves half the gathers for their memory. The
    last group, needed first in backward, is kept unless "always".
    """
    # Inputs keep their types: the rotary table stays float32, hidden states are param_dtype anyway.
    policy = MixedPrecisionPolicy(
        param_dtype=param_dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False
    )
    reshard = reshard_after_forward != "never"
    for block in model.layers.values():
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    if not model.sizes.tie_embeddings:
        # A tied matrix is used at both ends: it stays in the root's group.
        fully_shard(
            model.tok_embeddings, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard
        )
        fully_shard(
            [model.norm, model.output],
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=reshard_after_forward == "always",
        )
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no pre-multiplied sum, and a factor of 1 needs none.
            module.set_force_sum_reduction_for_comms(True)
