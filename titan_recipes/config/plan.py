"""The plan arithmetic: every integer that follows from model, training and plan, and its checks.

Torch-free, so that a degree that can't work is refused on the laptop and not after the queue.
All problems are collected; each shows the arithmetic it failed.
"""

from collections.abc import Callable, Iterator

from titan_recipes.config.hardware import ANY_GPU, GPUS, NO_GPU
from titan_recipes.config.job import Derived
from titan_recipes.config.load import did_you_mean
from titan_recipes.config.schema import Config, Model
from titan_recipes.errors import ConfigError, Problem

WhereOf = Callable[[str], str]


def num_params(model: Model) -> int:
    """Parameters of the decoder, tied matrices counted once (Llama 3 8B: 8,030,261,248)."""
    attention = 2 * model.dim * model.head_dim * (model.n_heads + model.n_kv_heads)
    block = attention + 3 * model.dim * model.ffn_dim + 2 * model.dim
    embeddings = model.vocab_size * model.dim * (1 if model.tie_embeddings else 2)
    return embeddings + model.n_layers * block + model.dim


def flops_per_token(model: Model, seq_len: int) -> int:
    """Forward and backward FLOPs of one token: 6 per matmul parameter plus attention.

    The convention of PaLM (arXiv:2204.02311, appendix B), which MFU is quoted in: the embedding's
    lookup costs nothing, attention is counted without its causal half.
    """
    lookup = 0 if model.tie_embeddings else model.vocab_size * model.dim
    attention = 12 * model.n_layers * model.n_heads * model.head_dim * seq_len
    return 6 * (num_params(model) - lookup) + attention


def divisors(number: int, limit: int) -> str:
    """'1, 2 or 4': the divisors of `number` up to `limit`, for a cure."""
    found = [str(d) for d in range(1, min(number, limit) + 1) if number % d == 0]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"


def derive(config: Config, where_of: WhereOf) -> tuple[Derived, list[str]]:
    """The derived integers and notes on what was clipped. Raises ConfigError with all problems.

    where_of names the file that set a key.
    """
    degrees, problems = _degrees(config, where_of)
    problems += _model_checks(config, where_of)
    problems += _split_checks(config, where_of)
    batch, batch_problems = _batches(config, degrees, where_of)
    problems += batch_problems
    if problems:
        raise ConfigError(problems)
    schedule, notes = _schedule(config)
    global_batch, accumulation = batch
    return Derived(
        **degrees,
        **schedule,
        global_batch_size=global_batch,
        gradient_accumulation_steps=accumulation,
        tokens_per_step=global_batch * config.training.seq_len,
        num_params=num_params(config.model),
        flops_per_token=flops_per_token(config.model, config.training.seq_len),
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
    if shard == 0:
        problems.append(Problem(where_of(key), key, "got 0", "use -1 or a positive degree"))
        shard = 1
    elif shard == -1:
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
    model, plan = config.model, config.plan
    if model.n_heads % model.n_kv_heads:
        cure = f"use {divisors(model.n_heads, model.n_heads)}"
        got = f"{model.n_kv_heads} does not divide n_heads = {model.n_heads}"
        yield Problem(where_of("model.n_kv_heads"), "model.n_kv_heads", got, cure)
    if model.head_dim % 2:
        got = f"got {model.head_dim}"
        cure = "must be even: rotary embeddings turn pairs"
        yield Problem(where_of("model.head_dim"), "model.head_dim", got, cure)
    scaling = model.rope_scaling
    if scaling and scaling.high_freq_factor <= scaling.low_freq_factor:
        key = "model.rope_scaling.high_freq_factor"
        got = f"got {scaling.high_freq_factor}"
        yield Problem(
            where_of(key), key, got, f"must be > low_freq_factor = {scaling.low_freq_factor}"
        )
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
    known = ("model", "loss")
    for name in config.compile.components:
        if config.compile.enable and name not in known:
            key = "compile.components"
            yield Problem(where_of(key), key, f'got "{name}"', 'use "model", "loss"')
    parts = ("optimizer", "lr_scheduler", "dataloader", "rng")
    for name in config.checkpoint.exclude_from_loading:
        if name not in parts:
            key = "checkpoint.exclude_from_loading"
            cure = did_you_mean(name, parts) or f"use {', '.join(parts)}"
            yield Problem(where_of(key), key, f'got "{name}"', cure)


def _split_checks(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """What heads, layers, sequence and matrices must divide by."""
    model, p, training = config.model, config.parallelism, config.training
    tp, cp, pp = p.tensor_parallel_degree, p.context_parallel_degree, p.pipeline_parallel_degree
    key = "parallelism.tensor_parallel_degree"
    for name in ("n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
        size: int = getattr(model, name)
        if size % tp:
            got = f"{tp} does not divide {name} = {size}"
            yield Problem(where_of(key), key, got, f"use {divisors(model.n_kv_heads, 64)}")
            break
    if tp > 1 and training.seq_len % (tp * cp):
        got = f"tp({tp}) * cp({cp}) does not divide seq_len = {training.seq_len}"
        yield Problem(where_of(key), key, got, "sequence parallelism splits the sequence evenly")
    if cp > 1 and training.seq_len % (2 * cp):
        key = "parallelism.context_parallel_degree"
        got = f"seq_len {training.seq_len} is not a multiple of 2 * cp = {2 * cp}"
        yield Problem(
            where_of(key),
            key,
            got,
            f"use a seq_len that is, or cp {divisors(training.seq_len // 2, 64)}",
        )
    if pp > model.n_layers:
        key = "parallelism.pipeline_parallel_degree"
        got = f"{pp} stages for n_layers = {model.n_layers}"
        yield Problem(where_of(key), key, got, f"use at most {model.n_layers}")
    if pp > 1 and training.local_batch_size % p.pipeline_parallel_microbatch_size:
        key = "parallelism.pipeline_parallel_microbatch_size"
        batch = training.local_batch_size
        got = f"{p.pipeline_parallel_microbatch_size} does not divide local_batch_size = {batch}"
        yield Problem(where_of(key), key, got, f"use {divisors(batch, 64)}")
    if any(name in ("float8", "mx") for name in model.converters):
        for name, size in (("dim", model.dim), ("ffn_dim", model.ffn_dim)):
            if size % (16 * tp):
                got = f"{name} = {size} is not a multiple of 16 * tp = {16 * tp}"
                yield Problem(
                    where_of("model.converters"), "model.converters", got, "leave float8 out"
                )


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
    if training.global_batch_size < 1 or training.global_batch_size % once:
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
    total = schedule.total_steps if schedule.total_steps > 0 else steps
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
    return {"warmup_steps": warmup, "decay_steps": decay, "schedule_steps": total}, notes
