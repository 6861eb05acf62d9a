"""What an optimizer can't be combined with, and which parameters its groups match; torch-free."""

import re
from collections.abc import Iterator, Sequence

from titan_recipes.config.flavor import WhereOf, is_moe_layer
from titan_recipes.config.lora import lora_targets, uses_lora
from titan_recipes.config.schema import Config, Model, MoE, Optimizer
from titan_recipes.errors import Problem

IN_BACKWARD = "optimizer.early_step_in_backward"
STATE = "optimizer.state_dtype"
OFFLOAD = "optimizer.enable_cpu_offload"

# --- parameters by name ---------------------------------------------------------------------------


def trained_names(config: Config) -> list[str]:
    """The names of all parameters that a job trains, in the model's order."""
    names = parameter_names(config.model)
    if not uses_lora(config):
        return names
    targets = lora_targets(config)
    adapted = [name.rpartition(".")[0] for name in names if name.endswith(".weight")]
    return [
        f"{module}.{matrix}"
        for module in adapted
        if module.startswith("layers.") and module.rpartition(".")[2] in targets
        for matrix in ("lora_a", "lora_b")
    ]


def parameter_names(model: Model) -> list[str]:
    """The names of a model's parameters, as checkpoints have them; a tied one by its first."""
    names = ["tok_embeddings.weight"]
    for layer in range(model.n_layers):
        names += [f"layers.{layer}.{name}" for name in _layer_names(model, layer)]
    names += _norms(model, "norm")
    return names if model.tie_embeddings else [*names, "output.weight"]


def _layer_names(model: Model, layer: int) -> Iterator[str]:
    yield from (f"attention.{name}" for name in _attention_names(model))
    if is_moe_layer(model, layer):
        assert model.moe is not None
        yield from (f"moe.{name}" for name in _expert_names(model.moe))
    else:
        yield from (f"feed_forward.{matrix}.weight" for matrix in ("w1", "w2", "w3"))
    yield from _norms(model, "attention_norm", "ffn_norm")
    if model.post_norms:
        yield from _norms(model, "post_attention_norm", "post_ffn_norm")


def _attention_names(model: Model) -> Iterator[str]:
    if model.attention_sinks:
        yield "sinks"
    if model.mla is not None:
        if model.mla.q_lora_rank:
            yield from ("wq_a.weight", *_norms(model, "q_a_norm"), "wq_b.weight")
        else:
            yield "wq.weight"
        yield from ("wkv_a.weight", *_norms(model, "kv_norm"), "wkv_b.weight", "wo.weight")
        return
    for matrix in ("wq", "wk", "wv", "wo"):
        yield f"{matrix}.weight"
        if model.attention_bias:
            yield f"{matrix}.bias"
    if model.qk_norm:
        yield from _norms(model, "q_norm", "k_norm")


def _expert_names(moe: MoE) -> Iterator[str]:
    yield "router.gate.weight"
    if moe.router_bias:
        yield "router.gate.bias"
    kinds = ("w", "b") if moe.expert_bias else ("w",)
    yield from (f"experts.{kind}{index}" for kind in kinds for index in (1, 2, 3))
    if moe.num_shared_experts:
        yield from (f"shared.{matrix}.weight" for matrix in ("w1", "w2", "w3"))


def _norms(model: Model, *names: str) -> list[str]:
    return [] if model.norm == "np_layernorm" else [f"{name}.weight" for name in names]


def group_of(name: str, config: Optimizer) -> int:
    """Which of optimizer.groups a parameter is in: the first that matches; -1 = none."""
    found = (i for i, group in enumerate(config.groups) if re.search(group.pattern, name))
    return next(found, -1)


def moment_bytes(config: Optimizer, itemsize: int) -> int:
    """Bytes on the device that an optimizer keeps for a trained number of `itemsize` bytes.

    Scales, and the few parameters that are kept otherwise, are left out.
    """
    if config.enable_cpu_offload:
        return 0
    if config.name == "Muon":
        return itemsize
    return {"parameter": 2 * itemsize, "bfloat16": 4, "8bit": 2}[config.state_dtype]


# --- checks ---------------------------------------------------------------------------------------


def optimizer_problems(
    config: Config, where_of: WhereOf, accumulation_steps: int
) -> Iterator[Problem]:
    """Everything that the optimizer asked for can't do.

    accumulation_steps: passes of each rank in one step.
    """
    yield from _group_problems(config, where_of)
    checks = (_muon_limits, _state_limits, _offload_limits)
    for key, got, cure in (limit for check in checks for limit in check(config)):
        yield Problem(where_of(key), key, got, cure)
    if config.optimizer.early_step_in_backward:
        for got, cure in _in_backward_limits(config, accumulation_steps):
            yield Problem(where_of(IN_BACKWARD), IN_BACKWARD, got, cure)


def _group_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    key, groups = "optimizer.groups", config.optimizer.groups
    patterns: list[re.Pattern[str]] = []
    for index, group in enumerate(groups):
        try:
            patterns.append(re.compile(group.pattern))
        except re.error as error:
            got = f'"{group.pattern}" is no regular expression: {error}'
            yield Problem(where_of(key), f"{key}.{index}.pattern", got, "see Python's re")
    if len(patterns) < len(groups):
        return
    names = trained_names(config)
    taken: list[str] = []
    for index, pattern in enumerate(patterns):
        matched = [name for name in names if pattern.search(name)]
        if not matched:
            got, cure = "matches no parameter that is trained", f"names are like {_some(names)}"
        elif set(matched) <= set(taken):
            got, cure = "matches only what groups before it have", "put it before them"
        else:
            taken += matched
            continue
        yield Problem(where_of(key), f"{key}.{index}.pattern", f'"{pattern.pattern}" {got}', cure)


def _some(names: Sequence[str]) -> str:
    """A few names of different endings."""
    by_ending: dict[str, str] = {}
    for name in names:
        by_ending.setdefault(name.split(".", 2)[-1], name)
    return ", ".join(list(by_ending.values())[:4])


Limit = tuple[str, str, str]
"""(key, got, cure)."""


def _muon_limits(config: Config) -> Iterator[Limit]:
    optimizer = config.optimizer
    if optimizer.name != "Muon":
        return
    if uses_lora(config):
        got = 'got "Muon", but model.converters "lora" leaves it no whole matrix to train'
        yield "optimizer.name", got, 'use "AdamW"'
    if optimizer.state_dtype != "parameter":
        got = f'"{optimizer.state_dtype}" is for Adam\'s two moments; Muon has one, already half'
        yield STATE, got, 'use "parameter", or name = "AdamW"'
    for key, is_on in ((OFFLOAD, optimizer.enable_cpu_offload), *_offloaded(config)):
        if is_on:
            got = "got true, but Muon's matrix products are too slow for the host"
            yield key, got, 'leave it out, or use optimizer.name = "AdamW"'


def _offloaded(config: Config) -> list[tuple[str, bool]]:
    return [("training.enable_cpu_offload", config.training.enable_cpu_offload)]


def _state_limits(config: Config) -> Iterator[Limit]:
    optimizer = config.optimizer
    if optimizer.state_dtype == "parameter" or optimizer.name == "Muon":
        return
    for key, is_on in ((OFFLOAD, optimizer.enable_cpu_offload), *_offloaded(config)):
        if is_on:
            got = f'"{optimizer.state_dtype}" saves memory of the device, but {key} leaves it none'
            yield STATE, got, f'use "parameter", or {key} = false'


def _offload_limits(config: Config) -> Iterator[Limit]:
    if config.optimizer.enable_cpu_offload and config.training.enable_cpu_offload:
        got = "contradicts training.enable_cpu_offload, under which all of it is on the host"
        yield OFFLOAD, got, "keep one"


def _in_backward_limits(config: Config, accumulation_steps: int) -> Iterator[tuple[str, str]]:
    """(got, cure) of each thing that needs all gradients of a step at once."""
    training, optimizer = config.training, config.optimizer
    pp = config.parallelism.pipeline_parallel_degree
    if training.max_norm > 0:
        got = (
            f"updates before the norm of all gradients is known, but max_norm = {training.max_norm}"
        )
        yield got, "set training.max_norm = 0"
    if accumulation_steps > 1:
        got = (
            f"updates after one pass, but a step of global_batch_size {training.global_batch_size} "
            f"with local_batch_size {training.local_batch_size} has {accumulation_steps} passes"
        )
        yield got, "set training.global_batch_size = -1, or a larger training.local_batch_size"
    if pp > 1:
        got = f"updates after one backward, but pipeline_parallel_degree = {pp} makes many"
        yield got, "set parallelism.pipeline_parallel_degree = 1"
    if optimizer.name == "Muon":
        yield "updates one matrix at a time, but Muon deals all of them to the ranks", 'use "AdamW"'
    for key, is_on in ((OFFLOAD, optimizer.enable_cpu_offload), *_offloaded(config)):
        if is_on:
            yield f"would have backward wait for the host, with {key} = true", "keep one"
