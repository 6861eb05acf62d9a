"""What Hugging Face calls the tensors and numbers of each family: data, and one entry a family.

A family is a table of tensor names (usually the common one and a few lines), the keys of its
config.json that hold numbers of ours, those that are fixed, and the switches of model.toml that
its architecture has no other value of. Written after the `transformers` library, version 5, whose
logits the tests compare ours with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from titan_recipes.config.schema import Model


@dataclass(frozen=True, slots=True)
class Stored:
    """How a tensor of ours is stored: ours = hf[..., first::step], transposed, rows reordered.

    name: Hugging Face's, below its layer; "{expert}" in it: one tensor for each expert of ours.
    rows(sizes): row i of ours is row rows[i] of theirs; None = as they are.
    """

    name: str
    first: int = 0
    step: int = 1
    transposed: bool = False
    rows: Callable[[Model], tuple[int, ...]] | None = None


Table = Mapping[str, str | Stored | None]
"""Module, or whole tensor, of ours -> of theirs; None = they have none, and ours is zero."""


def _paired(width: int) -> list[int]:
    """Where the rows of (i, i + width / 2) pairs are in (2 i, 2 i + 1) pairs."""
    return [*range(0, width, 2), *range(1, width, 2)]


def _query_rows(sizes: Model) -> tuple[int, ...]:
    """Rows of DeepSeek's query projection: the rotated end of each head is stored in pairs."""
    assert sizes.mla is not None
    kept = sizes.head_dim - sizes.mla.rope_head_dim
    head = [*range(kept), *(kept + row for row in _paired(sizes.mla.rope_head_dim))]
    return tuple(n * sizes.head_dim + row for n in range(sizes.n_heads) for row in head)


def _key_rows(sizes: Model) -> tuple[int, ...]:
    """The same for the projection to the latent, whose last rows are the shared rotated key."""
    assert sizes.mla is not None
    rank = sizes.mla.kv_lora_rank
    return (*range(rank), *(rank + row for row in _paired(sizes.mla.rope_head_dim)))


_COMMON: Table = {
    "tok_embeddings": "embed_tokens",
    "norm": "norm",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_POST_NORMS: Table = {
    **_COMMON,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffn_norm": "post_feedforward_layernorm",
}
_QWEN3_MOE: Table = {
    **_COMMON,
    "moe.router.gate": "mlp.gate",
    "moe.router.selection_bias": None,
    "moe.experts.w1": "mlp.experts.{expert}.gate_proj.weight",
    "moe.experts.w2": "mlp.experts.{expert}.down_proj.weight",
    "moe.experts.w3": "mlp.experts.{expert}.up_proj.weight",
}
_MIXTRAL: Table = {
    **_COMMON,
    "moe.router.gate": "block_sparse_moe.gate",
    "moe.router.selection_bias": None,
    "moe.experts.w1": "block_sparse_moe.experts.{expert}.w1.weight",
    "moe.experts.w2": "block_sparse_moe.experts.{expert}.w2.weight",
    "moe.experts.w3": "block_sparse_moe.experts.{expert}.w3.weight",
}
_DEEPSEEK_V2: Table = {
    **_QWEN3_MOE,
    "moe.shared.w1": "mlp.shared_experts.gate_proj",
    "moe.shared.w2": "mlp.shared_experts.down_proj",
    "moe.shared.w3": "mlp.shared_experts.up_proj",
    "attention.wq": Stored("self_attn.q_proj", rows=_query_rows),
    "attention.wq_a": "self_attn.q_a_proj",
    "attention.q_a_norm": "self_attn.q_a_layernorm",
    "attention.wq_b": Stored("self_attn.q_b_proj", rows=_query_rows),
    "attention.wkv_a": Stored("self_attn.kv_a_proj_with_mqa", rows=_key_rows),
    "attention.kv_norm": "self_attn.kv_a_layernorm",
    "attention.wkv_b": "self_attn.kv_b_proj",
}
_DEEPSEEK_V3: Table = {
    **_DEEPSEEK_V2,
    "moe.router.selection_bias": "mlp.gate.e_score_correction_bias",
}
_GPT_OSS: Table = {
    **_COMMON,
    "attention.sinks": "self_attn.sinks",
    "moe.router.gate": "mlp.router",
    "moe.router.selection_bias": None,
    "moe.experts.w1": Stored("mlp.experts.gate_up_proj", step=2, transposed=True),
    "moe.experts.w3": Stored("mlp.experts.gate_up_proj", first=1, step=2, transposed=True),
    "moe.experts.w2": Stored("mlp.experts.down_proj", transposed=True),
    "moe.experts.b1": Stored("mlp.experts.gate_up_proj_bias", step=2),
    "moe.experts.b3": Stored("mlp.experts.gate_up_proj_bias", first=1, step=2),
    "moe.experts.b2": "mlp.experts.down_proj_bias",
}


def _no_numbers(sizes: Model) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One family in Hugging Face's words."""

    name: str
    """The class that transformers builds."""
    model_type: str
    """model_type in config.json."""
    tensors: Table = field(default_factory=lambda: _COMMON)
    """Our tensor names -> theirs."""
    numbers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Keys of config.json -> keys of [model], dotted; beside those that all families have."""
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keys of config.json that have one value as far as our decoder goes."""
    computed: Callable[[Model], dict[str, Any]] = _no_numbers
    """Keys of config.json that follow from several of ours."""
    missing: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a config.json means that leaves a key out."""
    switches: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keys of [model] that the architecture fixes, where that isn't our default."""
    rope_theta: float = 10000.0
    """What a config.json means that names no base."""
    global_every: int = 0
    """What a config.json means that has a window and lists no layer_types."""
    explicit_rope: bool = False
    """Without a rope_scaling the library would stretch: "default" is written out."""


def layer_types(sizes: Model) -> list[str]:
    """Which layers see a window and which everything, as config.json lists them."""
    every = sizes.global_every
    return [
        "sliding_attention"
        if sizes.sliding_window and not (every and (layer + 1) % every == 0)
        else "full_attention"
        for layer in range(sizes.n_layers)
    ]


def _window(sizes: Model) -> dict[str, Any]:
    return {"sliding_window": sizes.sliding_window or None, "layer_types": layer_types(sizes)}


def _gemma2(sizes: Model) -> dict[str, Any]:
    scale = sizes.attention_scale or sizes.head_dim**-0.5
    return {
        **_window(sizes),
        "query_pre_attn_scalar": _whole(scale**-2),
        "attn_logit_softcapping": sizes.attention_soft_cap or None,
        "final_logit_softcapping": sizes.output_soft_cap or None,
    }


def _gemma3(sizes: Model) -> dict[str, Any]:
    return {**_gemma2(sizes), "rope_local_base_freq": sizes.rope_theta_local or sizes.rope_theta}


def _whole(number: float) -> int | float:
    """An integer where the number is one but for rounding: the library takes no other."""
    nearest = round(number)
    return nearest if abs(number - nearest) < 1e-6 * nearest else number


def _qwen3_moe(sizes: Model) -> dict[str, Any]:
    assert sizes.moe is not None
    return {"mlp_only_layers": list(range(sizes.moe.num_dense_layers))}


def _deepseek(sizes: Model) -> dict[str, Any]:
    assert sizes.mla is not None
    return {
        "qk_nope_head_dim": sizes.head_dim - sizes.mla.rope_head_dim,
        "q_lora_rank": sizes.mla.q_lora_rank or None,
    }


_BIAS = {"attention_bias": "attention_bias"}
_LOCAL_EXPERTS = {
    "intermediate_size": "moe.ffn_dim",
    "num_local_experts": "moe.num_experts",
    "num_experts_per_tok": "moe.experts_per_token",
}
_LLAMA = Architecture("LlamaForCausalLM", "llama", numbers=_BIAS, fixed={"mlp_bias": False})
_GEMMA_SWITCHES = {"norm_unit_offset": True, "scale_embeddings": True, "activation": "gelu_tanh"}
_GEMMA_MISSING = {"tie_word_embeddings": True, "head_dim": 256}
_POST_NORM_SWITCHES = {**_GEMMA_SWITCHES, "post_norms": True}
# Only the larger V2 limits the groups, and it scores them in another way than V3.
_DEEPSEEK_V2_ROUTING = {
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "moe_layer_freq": 1,
}
_DEEPSEEK_V3_ROUTING = {
    "rope_interleave": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
}
_DEEPSEEK_NUMBERS = {
    "kv_lora_rank": "mla.kv_lora_rank",
    "qk_rope_head_dim": "mla.rope_head_dim",
    "v_head_dim": "mla.v_head_dim",
    "moe_intermediate_size": "moe.ffn_dim",
    "n_routed_experts": "moe.num_experts",
    "num_experts_per_tok": "moe.experts_per_token",
    "n_shared_experts": "moe.num_shared_experts",
    "first_k_dense_replace": "moe.num_dense_layers",
    "routed_scaling_factor": "moe.route_scale",
}

ARCHITECTURES: dict[str, Architecture] = {
    "llama2": _LLAMA,
    "llama3": _LLAMA,
    "gemma": Architecture(
        "GemmaForCausalLM",
        "gemma",
        numbers=_BIAS,
        # The first releases said "gelu" and meant its approximation; the library reads it so.
        fixed={"hidden_act": "gelu_pytorch_tanh"},
        switches=_GEMMA_SWITCHES,
        missing=_GEMMA_MISSING,
    ),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        "gemma2",
        tensors=_POST_NORMS,
        numbers=_BIAS,
        fixed={"hidden_activation": "gelu_pytorch_tanh"},
        computed=_gemma2,
        global_every=2,
        switches=_POST_NORM_SWITCHES,
        missing=_GEMMA_MISSING,
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        "gemma3_text",
        tensors=_POST_NORMS,
        numbers=_BIAS,
        fixed={"hidden_activation": "gelu_pytorch_tanh"},
        computed=_gemma3,
        global_every=6,
        switches={**_POST_NORM_SWITCHES, "qk_norm": True},
        missing={
            **_GEMMA_MISSING,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "rope_local_base_freq": 10000.0,
        },
        rope_theta=1e6,
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        "qwen3",
        numbers=_BIAS,
        fixed={"use_sliding_window": False},
        switches={"qk_norm": True},
        missing={"head_dim": 128},
    ),
    "mixtral": Architecture(
        "MixtralForCausalLM",
        "mixtral",
        tensors=_MIXTRAL,
        numbers=_LOCAL_EXPERTS,
        fixed={"sliding_window": None},
        switches={"ffn_dim": 0},
        rope_theta=1e6,
    ),
    "qwen3_moe": Architecture(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        tensors=_QWEN3_MOE,
        numbers={
            **_BIAS,
            "moe_intermediate_size": "moe.ffn_dim",
            "num_experts": "moe.num_experts",
            "num_experts_per_tok": "moe.experts_per_token",
            "norm_topk_prob": "moe.normalize_top_k",
        },
        fixed={"use_sliding_window": False, "decoder_sparse_step": 1},
        computed=_qwen3_moe,
        switches={"qk_norm": True},
        missing={"mlp_only_layers": [], "norm_topk_prob": False},
    ),
    "deepseek_v2": Architecture(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        tensors=_DEEPSEEK_V2,
        numbers=_DEEPSEEK_NUMBERS,
        fixed={"attention_bias": False, "mlp_bias": False, **_DEEPSEEK_V2_ROUTING},
        computed=_deepseek,
        switches={"moe.normalize_top_k": False},
        missing=_DEEPSEEK_V2_ROUTING,
    ),
    "deepseek_v3": Architecture(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        tensors=_DEEPSEEK_V3,
        numbers={
            **_DEEPSEEK_NUMBERS,
            "norm_topk_prob": "moe.normalize_top_k",
            "n_group": "moe.num_groups",
            "topk_group": "moe.num_limited_groups",
        },
        fixed={"attention_bias": False, **_DEEPSEEK_V3_ROUTING, "num_nextn_predict_layers": 0},
        computed=_deepseek,
        switches={"moe.score_func": "sigmoid"},
        missing=_DEEPSEEK_V3_ROUTING,
    ),
    "gpt_oss": Architecture(
        "GptOssForCausalLM",
        "gpt_oss",
        tensors=_GPT_OSS,
        numbers={**_BIAS, **_LOCAL_EXPERTS},
        fixed={"hidden_act": "silu", "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
        computed=_window,
        global_every=2,
        switches={
            "ffn_dim": 0,
            "activation": "clamped_swiglu",
            "attention_sinks": True,
            "moe.router_bias": True,
            "moe.expert_bias": True,
        },
        missing={"attention_bias": True, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
        rope_theta=150000.0,
        explicit_rope=True,
    ),
}
"""`model.family` -> the architecture."""
