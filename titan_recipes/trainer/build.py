"""From a job to this rank's share of the model, in the order that parallelism needs.

    model on meta -> conversion -> pipeline split -> each part: parallel, materialized, initialized

The parts of a rank are its pipeline stages; without a pipeline there is one, the whole model.
"""

import torch

from titan_recipes.config.job import Job
from titan_recipes.config.lora import lora_targets, uses_lora
from titan_recipes.config.optimizer import moment_bytes
from titan_recipes.config.quantize import quantize_lines
from titan_recipes.config.stages import pipeline_line
from titan_recipes.trainer.loss import build_loss
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.init import init_weights
from titan_recipes.trainer.model.lora import add_adapters
from titan_recipes.trainer.parallel.apply import parallelize
from titan_recipes.trainer.parallel.expert_parallel import moe_layers
from titan_recipes.trainer.parallel.mesh import World
from titan_recipes.trainer.parallel.precision import DTYPES
from titan_recipes.trainer.parallel.sequence_split import sequence_split, take_positions
from titan_recipes.trainer.quantize import convert


def build_model_parts(job: Job, world: World) -> list[Decoder]:
    """The parts of the model that this rank holds, ready to train, on its device."""
    seq_len = max(job.training.seq_len, job.validation.seq_len * job.validation.enable)
    with torch.device("meta"):
        model = Decoder(job.model, seq_len).to(DTYPES[job.training.dtype])
    assert sum(p.numel() for p in model.parameters()) == job.derived.num_params
    if uses_lora(job):
        add_adapters(model, job.lora, lora_targets(job))
    convert(model, job, world.device)
    if job.model.print_after_conversion and world.rank == 0:
        print(model)
    parts = [model]
    if world.pp_mesh is not None:
        # Imports torch's compiler, which other jobs can do without.
        from titan_recipes.trainer.parallel.pipeline import split_model

        parts = split_model(model, job, world)
    for part in parts:
        parallelize(part, job, world)
        part.to_empty(device="cpu" if job.training.enable_cpu_offload else world.device)
        move_buffers(part, world.device)
        part.tie()
        init_weights(part, job.debug.seed, world.device)
        for moe in moe_layers(part):
            moe.router.force_balance = job.debug.moe_force_load_balance
        take_positions(part, sequence_split(job, world))
        if part.output is not None:
            part.output.loss = build_loss(job, world)
        part.train()
    return parts


def move_buffers(part: Decoder, device: torch.device) -> None:
    """Materialize every buffer where it is computed with: CPU offload moves only parameters."""
    for module in part.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device=device))


def num_trained(parts: list[Decoder]) -> int:
    """Numbers that are trained, of all ranks that share the parts."""
    return sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)


def introduction(job: Job, world: World, parts: list[Decoder]) -> list[str]:
    """What the config became, in lines: the derived numbers that a person would check first."""
    derived = job.derived
    axes = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep")
    degrees = {axis: getattr(derived, axis) for axis in axes}
    used = [f"{axis} {degree}" for axis, degree in degrees.items() if degree > 1]
    mesh = " x ".join(used) if used else "one process"
    adapters = num_trained(parts) if uses_lora(job) else 0
    parameters = f"{derived.num_params:,}" + (f" and {adapters:,} of adapters" if adapters else "")
    # What is trained has a gradient of the parameters' type, and the optimizer's moments.
    itemsize, trained = DTYPES[job.training.dtype].itemsize, adapters or derived.num_params
    state_bytes = (derived.num_params + adapters + trained) * itemsize
    state_bytes += trained * moment_bytes(job.optimizer, itemsize)
    ranks_of_a_copy = derived.world_size // derived.dp_replicate
    pipeline = pipeline_line(job)
    return [
        f"{job.recipe_id}, plan {job.origin.plan}: {derived.world_size} x {world.device.type}, "
        f"{mesh}",
        f"parameters {parameters}; with gradients and optimizer state "
        f"{state_bytes / ranks_of_a_copy / 2**30:.2f} GiB a rank; "
        f"{derived.flops_per_token / 1e9:,.3f} GFLOP per token",
        f"tokens per step = {job.training.local_batch_size} sequences x {job.dp_degree} ranks "
        f"x {derived.gradient_accumulation_steps} passes x {job.training.seq_len:,} = "
        f"{derived.tokens_per_step:,}",
        *([pipeline] if pipeline else []),
        *quantize_lines(job),
    ]
