"""The order in which a model becomes a parallel one: checkpointing, compile, then sharding."""

import torch

from titan_recipes.config.job import Job
from titan_recipes.errors import ConfigError, Problem
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.parallel.activation_checkpoint import apply_activation_checkpoint
from titan_recipes.trainer.parallel.fsdp import apply_fsdp
from titan_recipes.trainer.parallel.mesh import World

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parallelize(model: Decoder, job: Job, world: World) -> None:
    """Lay the job's parallelism over a model on the meta device, in place.

    At world size 1 nothing is wrapped by FSDP. Raises ConfigError for an unknown compile backend.
    """
    apply_activation_checkpoint(model, job.activation_checkpoint)
    if job.compile.enable and job.compile.backend not in torch._dynamo.list_backends(None):
        known = ", ".join(torch._dynamo.list_backends(None))
        got = f'got "{job.compile.backend}"'
        raise ConfigError([Problem("job.toml", "compile.backend", got, f"use one of {known}")])
    if job.compile.enable and "model" in job.compile.components:
        for block in model.layers.values():
            block.compile(backend=job.compile.backend, fullgraph=True)
    if world.dp_mesh is not None:
        apply_fsdp(
            model,
            world.dp_mesh,
            param_dtype=DTYPES[job.training.mixed_precision_param],
            reduce_dtype=DTYPES[job.training.mixed_precision_reduce],
            reshard_after_forward=job.parallelism.fsdp_reshard_after_forward,
        )
