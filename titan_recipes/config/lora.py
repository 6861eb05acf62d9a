"""Which linears a LoRA job adapts, and whether its settings agree; torch-free."""

from collections.abc import Iterator

from titan_recipes.config.flavor import WhereOf, is_moe_layer, num_active_params
from titan_recipes.config.schema import Config, Model
from titan_recipes.errors import Problem

LORA = "lora"
"""Its name in model.converters."""


def uses_lora(config: Config) -> bool:
    """Whether adapters are trained instead of the model's own weights."""
    return LORA in config.model.converters


def adaptable(model: Model) -> tuple[str, ...]:
    """The names of the linears in the model's blocks; routed experts and routers are none."""
    attention = ("wq", "wk", "wv", "wo")
    if model.mla is not None:
        query = ("wq_a", "wq_b") if model.mla.q_lora_rank else ("wq",)
        attention = (*query, "wkv_a", "wkv_b", "wo")
    is_dense = not all(is_moe_layer(model, layer) for layer in range(model.n_layers))
    has_shared = model.moe is not None and model.moe.num_shared_experts > 0
    return (*attention, "w1", "w2", "w3") if is_dense or has_shared else attention


def lora_targets(config: Config) -> tuple[str, ...]:
    """The names of the linears that are adapted."""
    return config.lora.target_modules or adaptable(config.model)


def flops_saved(config: Config) -> int:
    """Of `flops_per_token`, what a LoRA job does without: the gradients of frozen matrices.

    What its adapters add, a hundredth or two, is left out.
    """
    model = config.model
    lookup = 0 if model.tie_embeddings else model.vocab_size * model.dim
    return 2 * (num_active_params(model) - lookup) if uses_lora(config) else 0


def lora_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """What is wrong with a LoRA job."""
    if not uses_lora(config):
        return
    missing = [name for name in config.lora.target_modules if name not in adaptable(config.model)]
    if missing:
        key = "lora.target_modules"
        got = f"{', '.join(missing)}: no linear of this model"
        yield Problem(where_of(key), key, got, f"use {', '.join(adaptable(config.model))}")
    p, checkpoint = config.parallelism, config.checkpoint
    key = "model.converters"
    for name in ("tensor_parallel", "pipeline_parallel", "expert_parallel"):
        if (degree := getattr(p, f"{name}_degree")) > 1:
            got = f'"lora" does not go with {name}_degree = {degree} yet'
            yield Problem(where_of(key), key, got, "split by data and context parallelism alone")
    if not checkpoint.enable or not checkpoint.initial_load_path:
        key = f"checkpoint.{'initial_load_path' if checkpoint.enable else 'enable'}"
        got = "not set" if checkpoint.enable else "got false"
        cure = "name the base model's weights, which the adapters are trained on"
        yield Problem(where_of(key), key, f'{got}, with model.converters "lora"', cure)
    elif not checkpoint.initial_load_model_only:
        key = "checkpoint.initial_load_model_only"
        cure = "leave it true: only weights are taken from a base model"
        yield Problem(where_of(key), key, 'got false, with model.converters "lora"', cure)
