"""What each axis splits, and what that must divide by: one function per axis.

A degree that can't work is refused here, with the arithmetic and the legal values, for the laptop
and the ranks alike.
"""

from collections.abc import Iterator

from titan_recipes.config.flavor import WhereOf, divisors
from titan_recipes.config.schema import Config
from titan_recipes.errors import Problem


def split_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """Every problem of every axis."""
    yield from _tensor(config, where_of)
    yield from _context(config, where_of)
    yield from _pipeline(config, where_of)
    yield from _expert(config, where_of)
    yield from _converters(config, where_of)


def _tensor(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    model, p, seq_len = config.model, config.parallelism, config.training.seq_len
    tp, cp = p.tensor_parallel_degree, p.context_parallel_degree
    key = "parallelism.tensor_parallel_degree"
    for name in ("n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
        size: int = getattr(model, name)
        if size % tp:
            got = f"{tp} does not divide {name} = {size}"
            yield Problem(where_of(key), key, got, f"use {divisors(model.n_kv_heads, 64)}")
            break
    if tp > 1 and seq_len % (tp * cp):
        got = f"tp({tp}) * cp({cp}) does not divide seq_len = {seq_len}"
        yield Problem(where_of(key), key, got, "sequence parallelism splits the sequence evenly")


def _context(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    cp, seq_len = config.parallelism.context_parallel_degree, config.training.seq_len
    if cp > 1 and seq_len % (2 * cp):
        key = "parallelism.context_parallel_degree"
        got = f"seq_len {seq_len} is not a multiple of 2 * cp = {2 * cp}"
        cure = f"use a seq_len that is, or cp {divisors(seq_len // 2, 64)}"
        yield Problem(where_of(key), key, got, cure)


def _pipeline(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    p, n_layers = config.parallelism, config.model.n_layers
    pp, batch = p.pipeline_parallel_degree, config.training.local_batch_size
    if pp > n_layers:
        key = "parallelism.pipeline_parallel_degree"
        got = f"{pp} stages for n_layers = {n_layers}"
        yield Problem(where_of(key), key, got, f"use at most {n_layers}")
    if pp > 1 and batch % p.pipeline_parallel_microbatch_size:
        key = "parallelism.pipeline_parallel_microbatch_size"
        got = f"{p.pipeline_parallel_microbatch_size} does not divide local_batch_size = {batch}"
        yield Problem(where_of(key), key, got, f"use {divisors(batch, 64)}")


def _expert(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    moe, p, plan = config.model.moe, config.parallelism, config.plan
    ep, key = p.expert_parallel_degree, "parallelism.expert_parallel_degree"
    if ep == 1:
        return
    if moe is None:
        yield Problem(where_of(key), key, f"got {ep}, but the model has no experts", "use 1")
        return
    if moe.num_experts % ep:
        got = f"{ep} does not divide num_experts = {moe.num_experts}"
        yield Problem(where_of(key), key, got, f"use {divisors(moe.num_experts, 64)}")
    copies = p.data_parallel_replicate_degree * p.pipeline_parallel_degree
    ranks = max(plan.nodes * plan.gpus_per_node // copies, 1)
    if ranks % ep:
        got = f"{ep} does not divide the dp_shard * cp * tp = {ranks} ranks of one copy and stage"
        yield Problem(where_of(key), key, got, f"use {divisors(ranks, 64)}")


def _converters(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    model, tp = config.model, config.parallelism.tensor_parallel_degree
    if any(name in ("float8", "mx") for name in model.converters):
        key = "model.converters"
        for name, size in (("dim", model.dim), ("ffn_dim", model.ffn_dim)):
            if size % (16 * tp):
                got = f"{name} = {size} is not a multiple of 16 * tp = {16 * tp}"
                yield Problem(where_of(key), key, got, "leave float8 out")
