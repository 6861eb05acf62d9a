"""The plan arithmetic: every integer that follows from model, training and plan, and its checks.

Torch-free, so that a degree that can't work is refused on the laptop and not after the queue.
All problems are collected; each shows the arithmetic it failed.
"""

from collections.abc import Iterator

from titan_recipes.config.attention import attention_problems
from titan_recipes.config.flavor import WhereOf, flavor_problems, flops_per_token, num_params
from titan_recipes.config.hardware import ANY_GPU, GPUS, NO_GPU
from titan_recipes.config.job import Derived
from titan_recipes.config.load import did_you_mean
from titan_recipes.config.lora import flops_saved, lora_problems
from titan_recipes.config.optimizer import optimizer_problems
from titan_recipes.config.quantize import quantize_lines, quantize_problems
from titan_recipes.config.schema import Config
from titan_recipes.config.splits import split_problems
from titan_recipes.config.stages import pipeline_line
from titan_recipes.errors import ConfigError, Problem


def derive(config: Config, where_of: WhereOf) -> tuple[Derived, list[str]]:
    """The derived integers and notes on what was clipped. Raises ConfigError with all problems.

    where_of names the file that set a key.
    """
    degrees, problems = _degrees(config, where_of)
    problems += _model_checks(config, where_of)
    problems += split_problems(config, where_of)
    problems += attention_problems(config, where_of)
    problems += lora_problems(config, where_of)
    problems += quantize_problems(config, where_of)
    batch, batch_problems = _batches(config, degrees, where_of)
    problems += batch_problems
    problems += optimizer_problems(config, where_of, batch[1])
    schedule, notes = _schedule(config)
    problems += _rest_problems(config, schedule, where_of)
    if problems:
        raise ConfigError(problems)
    if line := pipeline_line(config):
        notes.append(line)
    notes += quantize_lines(config)
    global_batch, accumulation = batch
    return Derived(
        **degrees,
        **schedule,
        global_batch_size=global_batch,
        gradient_accumulation_steps=accumulation,
        tokens_per_step=global_batch * config.training.seq_len,
        num_params=num_params(config.model),
        flops_per_token=(
            flops_per_token(config.model, config.training.seq_len) - flops_saved(config)
        ),
    ), notes


def _degrees(config: Config, where_of: WhereOf) -> tuple[dict[str, int], list[Problem]]:
    p, plan = config.parallelism, config.plan
    world = plan.nodes * plan.gpus_per_node
    fixed = {
        "dp_replicate": p.data_parallel_replicate_degree,
        "cp": p.context_parallel_degree,
        "tp": p.tensor_parallel_degree,
        "pp": p.pipeline_parallel_degree,
    }
    others = 1
    for degree in fixed.values():
        others *= degree
    shown = " * ".join(f"{name}({degree})" for name, degree in fixed.items())
    size = f"world size {world} (nodes {plan.nodes} * gpus_per_node {plan.gpus_per_node})"
    key = "parallelism.data_parallel_shard_degree"
    shard, problems = p.data_parallel_shard_degree, list[Problem]()
    if shard == -1:
        shard = max(world // others, 1)
        if shard * others != world:
            cure = "make the degrees' product divide the world size"
            where = where_of("plan.gpus_per_node")
            got = f"{shown} = {others} does not divide {size}"
            problems.append(Problem(where, "parallelism", got, cure))
    elif shard * others != world:
        cure = f"set it to -1, or change plan.nodes or plan.gpus_per_node to give {shard * others}"
        got = f"dp_shard({shard}) * {shown} = {shard * others} != {size}"
        problems.append(Problem(where_of(key), key, got, cure))
    degrees = fixed | {"dp_shard": shard, "ep": p.expert_parallel_degree, "world_size": world}
    return degrees, problems


def _model_checks(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    plan = config.plan
    yield from flavor_problems(config.model, where_of)
    if plan.gpu not in (ANY_GPU, NO_GPU, *GPUS):
        cure = (
            did_you_mean(plan.gpu, (*GPUS, ANY_GPU, NO_GPU)) or f"use cpu, any, {', '.join(GPUS)}"
        )
        yield Problem(where_of("plan.gpu"), "plan.gpu", f'got "{plan.gpu}"', cure)
    option, mode = (
        config.activation_checkpoint.selective_ac_option,
        config.activation_checkpoint.mode,
    )
    if mode == "selective" and option != "op" and not (option.isdecimal() and int(option) > 0):
        key = "activation_checkpoint.selective_ac_option"
        cure = 'use "op", or a number n >= 1 for every n-th block'
        yield Problem(where_of(key), key, f'got "{option}"', cure)


def _batches(
    config: Config, degrees: dict[str, int], where_of: WhereOf
) -> tuple[tuple[int, int], list[Problem]]:
    """(global batch size, gradient accumulation steps)."""
    training = config.training
    dp = degrees["dp_replicate"] * degrees["dp_shard"]
    once = training.local_batch_size * dp
    key = "training.global_batch_size"
    if training.global_batch_size == -1:
        return (once, 1), []
    if training.global_batch_size % once:
        got = (
            f"{training.global_batch_size} is not a multiple of local_batch_size "
            f"{training.local_batch_size} * dp {dp} = {once}"
        )
        near = max(training.global_batch_size // once, 1) * once
        return (once, 1), [Problem(where_of(key), key, got, f"use {near}, or another local batch")]
    return (training.global_batch_size, training.global_batch_size // once), []


def _schedule(config: Config) -> tuple[dict[str, int], list[str]]:
    """Warmup, decay and span in steps, clipped to each other, and lines on what was clipped."""
    schedule, steps = config.lr_scheduler, config.training.steps
    total = steps if schedule.total_steps == -1 else schedule.total_steps
    notes: list[str] = []
    warmup = schedule.warmup_steps
    if warmup > total:
        notes.append(
            f"lr_scheduler.warmup_steps {warmup} is clipped to the schedule's {total} steps"
        )
        warmup = total
    decay = total - warmup if schedule.decay_ratio < 0 else round(total * schedule.decay_ratio)
    if warmup + decay > total:
        notes.append(
            f"lr_scheduler: warmup {warmup} + decay {decay} > {total} steps; decay is clipped to "
            f"{total - warmup}"
        )
        decay = total - warmup
    if steps > total:
        share = schedule.min_lr_factor if decay else 1.0
        notes.append(
            f"lr_scheduler.total_steps: steps {total + 1} to {steps} stay at the rate it ends "
            f"with, {share} of the peak"
        )
    return {"warmup_steps": warmup, "decay_steps": decay, "schedule_steps": total}, notes


def _rest_problems(
    config: Config, schedule: dict[str, int], where_of: WhereOf
) -> Iterator[Problem]:
    """Whether training goes on past the end of its schedule at a rate of 0, learning nothing."""
    steps, total = config.training.steps, schedule["schedule_steps"]
    if steps > total and schedule["decay_steps"] and config.lr_scheduler.min_lr_factor == 0:
        key = "lr_scheduler.total_steps"
        got = f"{total} < training.steps {steps}: the rest would train at a rate of 0"
        cure = "leave it out, raise it, or set lr_scheduler.min_lr_factor"
        yield Problem(where_of(key), key, got, cure)
