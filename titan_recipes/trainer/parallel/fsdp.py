"""FSDP2: parameters, gradients and optimizer state sharded over ranks, gathered block by block.

Every job of more than one rank goes through it. On a mesh of two axes, copies of the model over the
first, it is HSDP; with one rank in the second it is DDP; over one rank it only casts.

Gradients are summed, not averaged: the loss is already divided by the tokens of the whole step, so
that its gradient does not depend on how many ranks or passes the batch was split into.
"""

from typing import Any

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from titan_recipes.config.job import Job
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.moe import Moe
from titan_recipes.trainer.parallel.expert_parallel import moe_layers
from titan_recipes.trainer.parallel.mesh import World
from titan_recipes.trainer.parallel.precision import DTYPES


def apply_fsdp(model: Decoder, job: Job, world: World) -> None:
    """Shard a model in place, one group of collectives per block.

    fsdp_reshard_after_forward: "always" and "default" free gathered parameters after forward and
    gather them again for backward; "never" keeps them, which saves half the gathers for their
    memory, as does "default" in a pipeline, which else would gather for every microbatch. The last
    group, needed first in backward, is kept unless "always".
    """
    mesh = world.fsdp_mesh
    if mesh is None:
        return
    expert_mesh = world.expert_fsdp_mesh or mesh
    # Inputs keep their types: the rotary table stays float32, hidden states are param_dtype anyway.
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[job.training.mixed_precision_param],
        reduce_dtype=DTYPES[job.training.mixed_precision_reduce],
        cast_forward_inputs=False,
    )
    options: dict[str, Any] = {"mp_policy": policy}
    if job.training.enable_cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    when = job.parallelism.fsdp_reshard_after_forward
    reshard = when == "always" or (when == "default" and job.derived.pp == 1)
    for moe in moe_layers(model):
        shard_experts(moe, expert_mesh, reshard_after_forward=reshard, **options)
    options["mesh"] = mesh
    for block in model.layers.values():
        fully_shard(block, reshard_after_forward=reshard, **options)
    if not model.is_tied:
        # A tied matrix is used at both ends: it stays in the root's group.
        if model.tok_embeddings is not None:
            fully_shard(model.tok_embeddings, reshard_after_forward=reshard, **options)
        if ends := [end for end in (model.norm, model.output) if end is not None]:
            fully_shard(ends, reshard_after_forward=when == "always", **options)
    fully_shard(model, reshard_after_forward=reshard, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no pre-multiplied sum, and a factor of 1 needs none.
            module.set_force_sum_reduction_for_comms(True)


def shard_experts(moe: Moe, mesh: DeviceMesh, **options: Any) -> None:
    """Shard a layer's experts: by expert, or where these do not divide by the rows of each.

    Padded, 8 experts on 64 ranks would leave 56 ranks without any, and gather 8 times as much.
    """
    num_local = moe.experts.w1.shape[0]
    if isinstance(moe.experts.w1, DTensor):
        num_local = moe.experts.w1.to_local().shape[0]
    dim = 0 if num_local % mesh.size(mesh.ndim - 1) == 0 else 1
    fully_shard(moe.experts, mesh=mesh, shard_placement_fn=lambda _: Shard(dim), **options)
