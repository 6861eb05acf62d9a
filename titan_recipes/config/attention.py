"""Where each model.attention_backend works: refused here, by name, on the laptop and the ranks."""

from collections.abc import Iterator

from titan_recipes.config.datasets import asked_datasets
from titan_recipes.config.flavor import WhereOf
from titan_recipes.config.hardware import ANY_GPU, NO_GPU
from titan_recipes.config.schema import Config
from titan_recipes.errors import Problem

WIDEST_HEAD = 256
"""Of FlashAttention's kernels."""


def attention_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """Everything that the backend asked for can't do."""
    key, backend = "model.attention_backend", config.model.attention_backend
    if backend == "sdpa":
        return
    limits = [*_limits(config), *(_varlen_limits(config) if backend == "varlen" else ())]
    for got, cure in limits:
        yield Problem(where_of(key), key, f'"{backend}" {got}', cure)


def _limits(config: Config) -> Iterator[tuple[str, str]]:
    gpu, cp = config.plan.gpu, config.parallelism.context_parallel_degree
    if gpu in (NO_GPU, ANY_GPU):
        yield f'needs CUDA for its backward, but plan.gpu = "{gpu}"', 'name a GPU, or use "sdpa"'
    if cp > 1:
        got = f"sees one rank's keys only, but context_parallel_degree = {cp}"
        yield got, 'use "sdpa", or context_parallel_degree = 1'


def _varlen_limits(config: Config) -> Iterator[tuple[str, str]]:
    """FlashAttention's kernel knows documents and windows, in 16 bits."""
    model, training = config.model, config.training
    is_chat = any(asked.is_chat for asked in asked_datasets(config))
    if not (config.data.document_mask or is_chat):
        yield "is for packed documents", 'set data.document_mask = true, or use "sdpa" or "flex"'
    for name, value in (
        ("model.attention_soft_cap", model.attention_soft_cap),
        ("model.attention_sinks", model.attention_sinks),
    ):
        if value:
            yield f"does not know {name}", 'use "flex"'
    if model.mla is not None:
        yield "has one width for keys and values, unlike model.mla", 'use "flex"'
    if model.head_dim % 8 or model.head_dim > WIDEST_HEAD:
        got = f"needs a head_dim that is a multiple of 8 and at most {WIDEST_HEAD}"
        yield f"{got}, got {model.head_dim}", 'use "flex"'
    if training.mixed_precision_param == "float32":
        cure = 'set training.mixed_precision_param = "bfloat16", or use "flex"'
        yield "computes in 16 bits, but training.mixed_precision_param is float32", cure
