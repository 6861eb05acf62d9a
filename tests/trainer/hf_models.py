"""Small random models of every family, in `transformers` and in our words."""

from pathlib import Path
from typing import Any

import torch

from titan_recipes.config.schema import Model
from titan_recipes.config.schema.model import LatentAttention, MoE, RopeScaling

_SMALL: dict[str, Any] = {
    "dim": 64,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "ffn_dim": 96,
    "vocab_size": 160,
    "norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
_GEMMA: dict[str, Any] = {
    **_SMALL,
    "head_dim": 24,
    "norm_unit_offset": True,
    "scale_embeddings": True,
    "activation": "gelu_tanh",
    "tie_embeddings": True,
}
_EXPERTS: dict[str, Any] = {"num_experts": 8, "experts_per_token": 3, "ffn_dim": 40}

SIZES: dict[str, Model] = {
    "llama2": Model(family="llama2", **(_SMALL | {"norm_eps": 1e-5, "rope_theta": 1e6})),
    "llama3": Model(
        family="llama3",
        **(_SMALL | {"tie_embeddings": True}),
        rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=16),
    ),
    "gemma": Model(family="gemma", **(_GEMMA | {"n_kv_heads": 1})),
    "gemma2": Model(
        family="gemma2",
        **_GEMMA,
        post_norms=True,
        attention_scale=40**-0.5,
        attention_soft_cap=3.0,
        output_soft_cap=2.0,
        sliding_window=5,
        global_every=2,
    ),
    "gemma3": Model(
        family="gemma3",
        **_GEMMA,
        post_norms=True,
        qk_norm=True,
        attention_scale=40**-0.5,
        sliding_window=5,
        global_every=3,
        rope_theta_local=500.0,
        rope_scaling=RopeScaling(kind="linear", factor=8.0),
    ),
    "qwen3": Model(family="qwen3", **_SMALL, qk_norm=True, attention_bias=True),
    "mixtral": Model(family="mixtral", **(_SMALL | {"ffn_dim": 0}), moe=MoE(**_EXPERTS)),
    "qwen3_moe": Model(
        family="qwen3_moe",
        **_SMALL,
        qk_norm=True,
        moe=MoE(**_EXPERTS, num_dense_layers=1, normalize_top_k=False),
    ),
    "deepseek_v2": Model(
        family="deepseek_v2",
        **(_SMALL | {"n_kv_heads": 4, "head_dim": 24}),
        mla=LatentAttention(kv_lora_rank=20, rope_head_dim=8, v_head_dim=12),
        moe=MoE(
            **_EXPERTS,
            num_shared_experts=2,
            num_dense_layers=1,
            normalize_top_k=False,
            route_scale=1.5,
        ),
        rope_scaling=RopeScaling(
            kind="yarn", factor=40.0, original_max_seq_len=64, mscale=0.7, mscale_all_dim=0.7
        ),
    ),
    "deepseek_v3": Model(
        family="deepseek_v3",
        **(_SMALL | {"n_kv_heads": 4, "head_dim": 24}),
        mla=LatentAttention(kv_lora_rank=20, q_lora_rank=28, rope_head_dim=8, v_head_dim=12),
        moe=MoE(
            **_EXPERTS,
            num_shared_experts=2,
            num_dense_layers=2,
            score_func="sigmoid",
            route_scale=2.5,
            num_groups=4,
            num_limited_groups=2,
        ),
        rope_scaling=RopeScaling(
            kind="yarn", factor=40.0, original_max_seq_len=64, mscale=1.0, mscale_all_dim=0.7
        ),
    ),
    "gpt_oss": Model(
        family="gpt_oss",
        **(_SMALL | {"ffn_dim": 0}),
        attention_bias=True,
        attention_sinks=True,
        activation="clamped_swiglu",
        sliding_window=5,
        global_every=2,
        moe=MoE(**_EXPERTS, router_bias=True, expert_bias=True),
        rope_scaling=RopeScaling(kind="yarn", factor=32.0, original_max_seq_len=64, truncate=False),
    ),
}
"""A model of each family in which everything that it has makes a difference."""


_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 160,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "bos_token_id": 3,
    "eos_token_id": 4,
    "pad_token_id": None,
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def _rope(theta: float, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **more}


def _deepseek(*, mscale: float, **more: Any) -> dict[str, Any]:
    """What its versions have in common, and more."""
    stretched = {"factor": 40.0, "original_max_position_embeddings": 64}
    return {
        **{key: value for key, value in _COMMON.items() if key != "head_dim"},
        "num_key_value_heads": 4,
        "kv_lora_rank": 20,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "moe_intermediate_size": 40,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "rope_parameters": _rope(1e4, "yarn", **stretched, mscale=mscale, mscale_all_dim=0.7),
        **more,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "llama2": {
        **_COMMON,
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_parameters": _rope(1e6),
    },
    "llama3": {
        **_COMMON,
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": _rope(
            1e4,
            "llama3",
            factor=8.0,
            original_max_position_embeddings=16,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
    },
    "gemma": {
        **_COMMON,
        "model_type": "gemma",
        "head_dim": 24,
        "num_key_value_heads": 1,
        "rope_parameters": _rope(1e4),
    },
    "gemma2": {
        **_COMMON,
        "model_type": "gemma2",
        "head_dim": 24,
        "query_pre_attn_scalar": 40,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
        "sliding_window": 5,
        "layer_types": [_LOCAL, _GLOBAL, _LOCAL, _GLOBAL],
        "rope_parameters": _rope(1e4),
    },
    "gemma3": {
        **_COMMON,
        "model_type": "gemma3_text",
        "head_dim": 24,
        "query_pre_attn_scalar": 40,
        "sliding_window": 5,
        "layer_types": [_LOCAL, _LOCAL, _GLOBAL, _LOCAL],
        "rope_parameters": {
            _GLOBAL: _rope(1e4, "linear", factor=8.0),
            _LOCAL: _rope(500.0),
        },
    },
    "qwen3": {
        **_COMMON,
        "model_type": "qwen3",
        "attention_bias": True,
        "rope_parameters": _rope(1e4),
    },
    "mixtral": {
        **_COMMON,
        "model_type": "mixtral",
        "intermediate_size": 40,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "rope_parameters": _rope(1e4),
    },
    "qwen3_moe": {
        **_COMMON,
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 40,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "mlp_only_layers": [0],
        "rope_parameters": _rope(1e4),
    },
    "deepseek_v2": _deepseek(
        mscale=0.7,
        model_type="deepseek_v2",
        q_lora_rank=None,
        first_k_dense_replace=1,
        routed_scaling_factor=1.5,
    ),
    "deepseek_v3": _deepseek(
        mscale=1.0,
        model_type="deepseek_v3",
        q_lora_rank=28,
        first_k_dense_replace=2,
        routed_scaling_factor=2.5,
        n_group=4,
        topk_group=2,
        num_nextn_predict_layers=0,
    ),
    "gpt_oss": {
        **_COMMON,
        "model_type": "gpt_oss",
        "intermediate_size": 40,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "sliding_window": 5,
        "layer_types": [_LOCAL, _GLOBAL, _LOCAL, _GLOBAL],
        "rope_parameters": _rope(
            1e4, "yarn", factor=32.0, original_max_position_embeddings=64, truncate=False
        ),
    },
}
"""The same models in transformers' words, written by hand: nothing of ours has made them."""


def make_peer(family: str, folder: Path) -> Any:
    """The family's model as transformers builds it, in fp32, random, saved by save_pretrained."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    config = AutoConfig.for_model(**CONFIGS[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("inv_freq", "embed_scale")):
                continue
            # Norms, biases and sinks too: at their first values they would hide a wrong place.
            start = tensor.float().mean() if "norm" in name else torch.zeros(())
            tensor.copy_(start + 0.2 * torch.randn(tensor.shape))
    model.save_pretrained(folder)
    return model
