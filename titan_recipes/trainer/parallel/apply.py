"""The order in which a model becomes a parallel one: checkpointing, compile, then sharding."""

import torch

from titan_recipes.config.job import Job
from titan_recipes.errors import ConfigError, Problem
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.parallel.activation_checkpoint import apply_activation_checkpoint
from titan_recipes.trainer.parallel.activation_offload import offload_activations
from titan_recipes.trainer.parallel.context_parallel import apply_context_parallel
from titan_recipes.trainer.parallel.expert_parallel import (
    apply_expert_parallel,
    moe_layers,
    sum_sequence_counts,
)
from titan_recipes.trainer.parallel.fsdp import apply_fsdp
from titan_recipes.trainer.parallel.mesh import World
from titan_recipes.trainer.parallel.precision import DTYPES, compute_in
from titan_recipes.trainer.parallel.tensor_parallel import apply_tensor_parallel


def parallelize(model: Decoder, job: Job, world: World) -> None:
    """Lay the job's parallelism over a model on the meta device, in place.

    At world size 1 nothing is wrapped by FSDP, which else casts for compute. Raises ConfigError for
    an unknown compile backend.
    """
    if world.fsdp_mesh is None:
        compute_in(model, DTYPES[job.training.mixed_precision_param])
    apply_context_parallel(model, job, world)
    if world.tp_mesh is not None:
        enable_async = job.parallelism.enable_async_tensor_parallel
        apply_tensor_parallel(model, world.tp_mesh, enable_async=enable_async)
    if world.ep_mesh is not None:
        apply_expert_parallel(model, world.ep_mesh)
    sequence_meshes = [mesh for mesh in (world.cp_mesh, world.tp_mesh) if mesh is not None]
    sum_sequence_counts(model, [mesh.get_group() for mesh in sequence_meshes])
    apply_activation_checkpoint(model, job.activation_checkpoint)
    if job.compile.enable and job.compile.backend not in torch._dynamo.list_backends(None):
        known = ", ".join(torch._dynamo.list_backends(None))
        got = f'got "{job.compile.backend}"'
        raise ConfigError([Problem("job.toml", "compile.backend", got, f"use one of {known}")])
    if job.compile.enable and "model" in job.compile.components:
        for block in model.layers.values():
            # Tokens travel to experts outside of any graph.
            fullgraph = not (world.ep_mesh is not None and moe_layers(block))
            block.compile(backend=job.compile.backend, fullgraph=fullgraph)
    if job.activation_checkpoint.enable_offload:
        offload_activations(model)
    apply_fsdp(model, job, world)
