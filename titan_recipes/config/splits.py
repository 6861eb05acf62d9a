"""What each axis splits, and what that must divide by: one function per axis.

A degree that can't work is refused here, with the arithmetic and the legal values, for the laptop
and the ranks alike.
"""

import math
from collections.abc import Iterator

from titan_recipes.config.datasets import asked_datasets
from titan_recipes.config.flavor import WhereOf, divisors, one_of
from titan_recipes.config.hardware import ANY_GPU, NO_GPU
from titan_recipes.config.schema import Config, Model
from titan_recipes.config.stages import pipeline_problems
from titan_recipes.errors import Problem


def split_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """Every problem of every axis."""
    yield from _tensor(config, where_of)
    yield from _context(config, where_of)
    yield from pipeline_problems(config, where_of)
    yield from _expert(config, where_of)


def _tensor(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """Heads, hidden units and vocabulary are dealt over tp, a sequence over tp and cp."""
    p, training, validation = config.parallelism, config.training, config.validation
    tp, cp = p.tensor_parallel_degree, p.context_parallel_degree
    if tp == 1:
        return
    key = "parallelism.tensor_parallel_degree"
    sizes = _tensor_sizes(config.model)
    uneven = [f"{name} = {size}" for name, size in sizes.items() if size % tp]
    if uneven:
        got = f"{tp} does not divide {', '.join(uneven)}"
        yield Problem(where_of(key), key, got, f"use {divisors(math.gcd(*sizes.values()), 64)}")
    lengths = {"training.seq_len": training.seq_len}
    if validation.enable:
        lengths["validation.seq_len"] = validation.seq_len
    for name, length in lengths.items():
        if length % (tp * cp):
            got = f"{length} is not a multiple of tp({tp}) * cp({cp}) = {tp * cp}"
            near = max(length // (tp * cp), 1) * tp * cp
            yield Problem(where_of(name), name, got, f"use {near}: ranks split a sequence evenly")
    if p.enable_async_tensor_parallel:
        yield from _async_tensor(config, where_of)


def _tensor_sizes(model: Model) -> dict[str, int]:
    """Every number that tensor parallelism divides, by name."""
    sizes = {"n_heads": model.n_heads, "vocab_size": model.vocab_size}
    if model.mla is None:
        sizes["n_kv_heads"] = model.n_kv_heads
    if model.ffn_dim:
        sizes["ffn_dim"] = model.ffn_dim
    if model.moe is not None and model.moe.num_shared_experts:
        width = model.moe.num_shared_experts * model.moe.ffn_dim
        sizes["moe.num_shared_experts * moe.ffn_dim"] = width
    return sizes


def _async_tensor(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """It is a pass of inductor's over compiled blocks, and copies between GPUs."""
    key, gpu, made = "parallelism.enable_async_tensor_parallel", config.plan.gpu, config.compile
    if gpu in (NO_GPU, ANY_GPU):
        got = f'needs CUDA, but plan.gpu = "{gpu}"'
        yield Problem(where_of(key), key, got, "name a GPU, or leave it out")
    if not (made.enable and "model" in made.components and made.backend == "inductor"):
        cure = 'set compile.enable = true, with "model" in compile.components and backend inductor'
        yield Problem(where_of(key), key, "needs compiled blocks", cure)


def _context(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    p, training, validation = config.parallelism, config.training, config.validation
    cp, seq_len = p.context_parallel_degree, training.seq_len
    if cp == 1:
        return
    chunks, shown = (2 * cp, "2 * cp") if p.context_parallel_load_balancer else (cp, "cp")
    if seq_len % chunks:
        key = "parallelism.context_parallel_degree"
        got = f"seq_len {seq_len} is not a multiple of {shown} = {chunks}"
        cure = f"use a seq_len that is, or cp {divisors(seq_len * cp // chunks, 64)}"
        yield Problem(where_of(key), key, got, cure)
    if validation.enable and validation.seq_len != seq_len:
        key = "validation.seq_len"
        got = f"got {validation.seq_len}, but with cp({cp}) a rank knows only its own positions of"
        got += f" training.seq_len = {seq_len}"
        yield Problem(where_of(key), key, got, f"use {seq_len}")
    if p.context_parallel_rotate_method == "alltoall" and (why := _not_plain(config)):
        key = "parallelism.context_parallel_rotate_method"
        got = f'got "alltoall", but ring attention has no masks and no {why}'
        yield Problem(where_of(key), key, got, 'use "allgather"')


def _not_plain(config: Config) -> str:
    """What attention must do beyond a causal softmax; "" = nothing."""
    model, seq_len = config.model, config.training.seq_len
    if model.attention_soft_cap:
        return f"model.attention_soft_cap = {model.attention_soft_cap}"
    if model.attention_sinks:
        return "model.attention_sinks"
    if 0 < model.sliding_window < seq_len:
        return f"model.sliding_window = {model.sliding_window} < seq_len = {seq_len}"
    if config.data.document_mask:
        return "data.document_mask"
    if any(asked.is_chat for asked in asked_datasets(config)):
        return 'dataset "chat", which has document masks'
    return ""


def _expert(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    moe, p, plan = config.model.moe, config.parallelism, config.plan
    ep, key = p.expert_parallel_degree, "parallelism.expert_parallel_degree"
    if moe is None:
        if ep > 1:
            yield Problem(where_of(key), key, f"got {ep}, but the model has no experts", "use 1")
        return
    copies = p.data_parallel_replicate_degree * p.pipeline_parallel_degree
    ranks = max(plan.nodes * plan.gpus_per_node // copies, 1)
    fitting = [
        degree
        for degree in range(1, ranks + 1)
        if ranks % degree == 0
        and moe.num_experts % degree == 0
        and _experts_shard(config.model, moe.num_experts // degree, ranks // degree)
    ]
    cure = f"use {one_of(fitting)}" if fitting else "use another number of ranks"
    if moe.num_experts % ep:
        got = f"{ep} does not divide num_experts = {moe.num_experts}"
        yield Problem(where_of(key), key, got, cure)
    elif ranks % ep:
        got = f"{ep} does not divide the dp_shard * cp * tp = {ranks} ranks of one copy and stage"
        yield Problem(where_of(key), key, got, cure)
    elif not _experts_shard(config.model, moe.num_experts // ep, ranks // ep):
        got = (
            f"{ep} leaves {moe.num_experts // ep} experts to dp_shard * cp * tp / ep = "
            f"{ranks // ep} ranks, which divides neither them nor their dim = {config.model.dim} "
            f"and moe.ffn_dim = {moe.ffn_dim}"
        )
        yield Problem(where_of(key), key, got, cure)


def _experts_shard(model: Model, experts: int, ranks: int) -> bool:
    """Whether ranks can share so many experts evenly: whole ones, or the rows of each."""
    assert model.moe is not None
    return experts % ranks == 0 or (model.moe.ffn_dim % ranks == 0 and model.dim % ranks == 0)
