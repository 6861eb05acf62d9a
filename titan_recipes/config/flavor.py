"""A flavor's arithmetic: parameters, FLOPs, which layer is what, and whether its numbers agree.

Torch-free: the planner and the checks on the laptop use it, and the decoder is built by it.
"""

from collections.abc import Callable, Iterator

from titan_recipes.config.schema.model import LatentAttention, Model, MoE
from titan_recipes.errors import Problem

WhereOf = Callable[[str], str]
"""Names the file that set a key."""


# --- what a layer is ------------------------------------------------------------------------------


def is_moe_layer(model: Model, layer: int) -> bool:
    """Whether a layer has experts instead of a dense feed-forward."""
    return model.moe is not None and layer >= model.moe.num_dense_layers


def layer_window(model: Model, layer: int) -> int:
    """The sliding window of a layer in tokens; 0 = it sees everything before."""
    is_global = model.global_every and (layer + 1) % model.global_every == 0
    return 0 if is_global else model.sliding_window


def rotary_dim(model: Model) -> int:
    """Width of the part of a head that carries the position."""
    return model.mla.rope_head_dim if model.mla is not None else model.head_dim


# --- parameters and FLOPs -------------------------------------------------------------------------


def num_params(model: Model) -> int:
    """Parameters of the decoder, tied matrices counted once (Llama 3 8B: 8,030,261,248)."""
    return _count(model, model.moe.num_experts if model.moe else 0)


def num_active_params(model: Model) -> int:
    """Parameters that one token meets, embeddings included (Qwen3 30B-A3B: 3,353,032,704)."""
    return _count(model, model.moe.experts_per_token if model.moe else 0)


def flops_per_token(model: Model, seq_len: int) -> int:
    """Forward and backward FLOPs of one token: 6 per active matmul parameter plus attention.

    The convention of PaLM (arXiv:2204.02311, appendix B), which MFU is quoted in: the embedding's
    lookup costs nothing, attention is counted without its causal half. A layer with a sliding
    window is counted with as many keys as the window holds.
    """
    lookup = 0 if model.tie_embeddings else model.vocab_size * model.dim
    windows = [layer_window(model, layer) for layer in range(model.n_layers)]
    keys = sum(min(seq_len, window or seq_len) for window in windows)
    v_head_dim = model.mla.v_head_dim if model.mla else model.head_dim
    attention = 6 * model.n_heads * (model.head_dim + v_head_dim) * keys
    return 6 * (num_active_params(model) - lookup) + attention


def _count(model: Model, routed_experts: int) -> int:
    """Parameters with so many routed experts a layer."""
    moe_layers = sum(is_moe_layer(model, layer) for layer in range(model.n_layers))
    norms = (4 if model.post_norms else 2) * _norm(model, model.dim)
    total = model.n_layers * (_attention(model) + norms) + _norm(model, model.dim)
    total += (model.n_layers - moe_layers) * 3 * model.dim * model.ffn_dim
    if model.moe is not None:
        total += moe_layers * _experts(model.dim, model.moe, routed_experts)
    return total + model.vocab_size * model.dim * (1 if model.tie_embeddings else 2)


def _norm(model: Model, width: int) -> int:
    return 0 if model.norm == "np_layernorm" else width


def _attention(model: Model) -> int:
    if model.mla is not None:
        return _latent_attention(model, model.mla)
    query_width, kv_width = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    count = 2 * model.dim * (query_width + kv_width)
    if model.attention_bias:
        count += query_width + 2 * kv_width + model.dim
    if model.qk_norm:
        count += 2 * _norm(model, model.head_dim)
    return count + (model.n_heads if model.attention_sinks else 0)


def _latent_attention(model: Model, mla: LatentAttention) -> int:
    query_width = model.n_heads * model.head_dim
    kv_width = model.n_heads * (model.head_dim - mla.rope_head_dim + mla.v_head_dim)
    if mla.q_lora_rank:
        query = (model.dim + query_width) * mla.q_lora_rank + _norm(model, mla.q_lora_rank)
    else:
        query = model.dim * query_width
    to_latent = model.dim * (mla.kv_lora_rank + mla.rope_head_dim)
    from_latent = mla.kv_lora_rank * kv_width + _norm(model, mla.kv_lora_rank)
    return query + to_latent + from_latent + model.n_heads * mla.v_head_dim * model.dim


def _experts(dim: int, moe: MoE, routed: int) -> int:
    one = 3 * dim * moe.ffn_dim
    router = moe.num_experts * (dim + moe.router_bias)
    biases = (2 * moe.ffn_dim + dim) * moe.expert_bias
    return router + routed * (one + biases) + moe.num_shared_experts * one


# --- whether the numbers agree --------------------------------------------------------------------


def divisors(number: int, limit: int) -> str:
    """'1, 2 or 4': the divisors of `number` up to `limit`, for a cure."""
    return one_of([d for d in range(1, min(number, limit) + 1) if number % d == 0])


def one_of(choices: list[int]) -> str:
    """'1, 2 or 4', from at least one number."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last


def flavor_problems(model: Model, where_of: WhereOf) -> Iterator[Problem]:
    """Everything in [model] that contradicts itself."""
    found = (_attention_problems, _mla_problems, _rope_problems, _feed_forward_problems)
    for problems in found:
        for key, got, cure in problems(model):
            yield Problem(where_of(f"model.{key}"), f"model.{key}", got, cure)


Complaint = tuple[str, str, str]
"""(key below model, got, cure)."""


def _attention_problems(model: Model) -> Iterator[Complaint]:
    if model.n_heads % model.n_kv_heads:
        got = f"{model.n_kv_heads} does not divide n_heads = {model.n_heads}"
        yield "n_kv_heads", got, f"use {divisors(model.n_heads, model.n_heads)}"
    if model.global_every and not model.sliding_window:
        got = f"got {model.global_every}, but no layer has a sliding window"
        yield "global_every", got, "set model.sliding_window, or leave it out"
    if model.norm_unit_offset and model.norm != "rmsnorm":
        got = f'got true, but norm is "{model.norm}"'
        yield "norm_unit_offset", got, 'set model.norm = "rmsnorm", or leave it out'


def _mla_problems(model: Model) -> Iterator[Complaint]:
    mla = model.mla
    if mla is None:
        return
    if model.n_kv_heads != model.n_heads:
        got = f"{model.n_kv_heads}, but latent attention has as many as n_heads = {model.n_heads}"
        yield "n_kv_heads", got, f"use {model.n_heads}"
    if mla.rope_head_dim >= model.head_dim:
        got = f"{mla.rope_head_dim} leaves nothing of head_dim = {model.head_dim} unrotated"
        yield "mla.rope_head_dim", got, f"use less than {model.head_dim}"
    for name in ("attention_bias", "qk_norm", "attention_sinks"):
        if getattr(model, name):
            got = "got true, but latent attention ([model.mla]) has none"
            yield name, got, "leave it out"


def _rope_problems(model: Model) -> Iterator[Complaint]:
    width, scaling = rotary_dim(model), model.rope_scaling
    if width % 2:
        key = "mla.rope_head_dim" if model.mla is not None else "head_dim"
        yield key, f"got {width}", "must be even: rotary embeddings turn pairs"
    if model.rope_theta_local and not model.sliding_window:
        got = f"got {model.rope_theta_local}, but no layer has a sliding window"
        yield "rope_theta_local", got, "set model.sliding_window, or leave it out"
    if scaling is None:
        return
    if scaling.kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        got, cure = (
            f"got {scaling.high_freq_factor}",
            f"must be > low_freq_factor = {scaling.low_freq_factor}",
        )
        yield "rope_scaling.high_freq_factor", got, cure
    if scaling.kind == "yarn":
        if scaling.beta_fast <= scaling.beta_slow:
            got, cure = f"got {scaling.beta_fast}", f"must be > beta_slow = {scaling.beta_slow}"
            yield "rope_scaling.beta_fast", got, cure
        if model.rope_theta <= 1:
            yield "rope_theta", f"got {model.rope_theta}", "must be > 1 with yarn"
        return
    for name in ("mscale", "mscale_all_dim"):
        if getattr(scaling, name):
            got = f'got {getattr(scaling, name)}, but kind is "{scaling.kind}"'
            yield f"rope_scaling.{name}", got, 'set kind = "yarn", or leave it out'


def _feed_forward_problems(model: Model) -> Iterator[Complaint]:
    moe = model.moe
    dense = model.n_layers if moe is None else min(moe.num_dense_layers, model.n_layers)
    if dense and not model.ffn_dim:
        got = f"got 0, but {dense} of {model.n_layers} layers have a dense feed-forward"
        yield "ffn_dim", got, "set its width"
    if not dense and model.ffn_dim:
        got = f"got {model.ffn_dim}, but every layer has experts ([model.moe])"
        yield "ffn_dim", got, "use 0; the experts' width is model.moe.ffn_dim"
    if moe is None:
        return
    if moe.num_dense_layers >= model.n_layers:
        got = f"{moe.num_dense_layers} leaves no layer of n_layers = {model.n_layers} with experts"
        yield "moe.num_dense_layers", got, f"use less than {model.n_layers}"
    if moe.num_experts % moe.num_groups:
        got = f"{moe.num_groups} does not divide num_experts = {moe.num_experts}"
        yield "moe.num_groups", got, f"use {divisors(moe.num_experts, moe.num_experts)}"
        return
    if moe.num_limited_groups > moe.num_groups:
        got = f"{moe.num_limited_groups} > num_groups = {moe.num_groups}"
        yield "moe.num_limited_groups", got, f"use at most {moe.num_groups}"
        return
    open_experts = moe.num_experts // moe.num_groups * moe.num_limited_groups
    if moe.num_groups > 1 and moe.experts_per_token > open_experts:
        got = (
            f"{moe.experts_per_token} > {open_experts}, the experts in num_limited_groups = "
            f"{moe.num_limited_groups} of {moe.num_groups} groups"
        )
        yield "moe.experts_per_token", got, f"use at most {open_experts}, or open more groups"
    elif moe.experts_per_token > moe.num_experts:
        got = f"{moe.experts_per_token} > num_experts = {moe.num_experts}"
        yield "moe.experts_per_token", got, f"use at most {moe.num_experts}"
