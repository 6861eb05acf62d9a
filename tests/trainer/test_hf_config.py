"""config.json <-> model.toml, on the words of published models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.hf_models import CONFIGS, SIZES
from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.schema import Model
from titan_recipes.config.schema.model import LatentAttention, MoE, RopeScaling
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.hf.config import config_of, differences

LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        **LLAMA31,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
# The first form of Llama 2's, which leaves most out.
LLAMA2_7B: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "vocab_size": 32000,
}
GEMMA_2B: dict[str, Any] = {
    "attention_bias": False,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
GEMMA3_1B: dict[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
DEEPSEEK_V3: dict[str, Any] = {
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
PUBLISHED: dict[str, tuple[dict[str, Any], Model]] = {
    "Llama-2-7b": (
        LLAMA2_7B,
        Model(
            family="llama2",
            dim=4096,
            n_layers=32,
            n_heads=32,
            n_kv_heads=32,
            head_dim=128,
            ffn_dim=11008,
            vocab_size=32000,
            rope_theta=10000.0,
        ),
    ),
    "gemma-2b": (
        GEMMA_2B,
        Model(
            family="gemma",
            dim=2048,
            n_layers=18,
            n_heads=8,
            n_kv_heads=1,
            head_dim=256,
            ffn_dim=16384,
            vocab_size=256000,
            norm_eps=1e-6,
            rope_theta=10000.0,
            norm_unit_offset=True,
            scale_embeddings=True,
            activation="gelu_tanh",
            tie_embeddings=True,
        ),
    ),
    "gemma-3-1b-pt": (
        GEMMA3_1B,
        Model(
            family="gemma3",
            dim=1152,
            n_layers=26,
            n_heads=4,
            n_kv_heads=1,
            head_dim=256,
            ffn_dim=6912,
            vocab_size=262144,
            norm_eps=1e-6,
            norm_unit_offset=True,
            post_norms=True,
            qk_norm=True,
            scale_embeddings=True,
            activation="gelu_tanh",
            sliding_window=512,
            global_every=6,
            rope_theta=1e6,
            rope_theta_local=1e4,
            tie_embeddings=True,
        ),
    ),
    "DeepSeek-V3": (
        DEEPSEEK_V3,
        Model(
            family="deepseek_v3",
            dim=7168,
            n_layers=61,
            n_heads=128,
            n_kv_heads=128,
            head_dim=192,
            ffn_dim=18432,
            vocab_size=129280,
            norm_eps=1e-6,
            rope_theta=10000.0,
            rope_scaling=RopeScaling(
                kind="yarn",
                factor=40.0,
                original_max_seq_len=4096,
                mscale=1.0,
                mscale_all_dim=1.0,
            ),
            mla=LatentAttention(
                kv_lora_rank=512, q_lora_rank=1536, rope_head_dim=64, v_head_dim=128
            ),
            moe=MoE(
                num_experts=256,
                experts_per_token=8,
                ffn_dim=2048,
                num_shared_experts=1,
                num_dense_layers=3,
                score_func="sigmoid",
                route_scale=2.5,
                num_groups=8,
                num_limited_groups=4,
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_is_that_of_the_model(name: str):
    config, sizes = PUBLISHED[name]
    assert differences(config, sizes, "config.json") == []
    # The check has teeth: each number of the model is looked at.
    doubled = replace(sizes, ffn_dim=2 * sizes.ffn_dim, n_layers=sizes.n_layers + 1)
    found = [problem.what for problem in differences(config, doubled, "config.json")]
    assert [key for key in found if key != "layer_types"] == [
        "intermediate_size",
        "num_hidden_layers",
    ]


def test_llama3_8b_recipe_is_the_published_model():
    sizes = find_bundle("llama3_8b").resolve().job.model
    assert differences(LLAMA31_8B, sizes, "config.json") == []
    ours = config_of(sizes)
    said = ours.keys() & LLAMA31_8B.keys()
    assert {key: ours[key] for key in said} == {key: LLAMA31_8B[key] for key in said}


@pytest.mark.parametrize("family", SIZES)
def test_every_number_of_every_family_is_compared(family: str):
    from transformers import AutoConfig

    config, sizes = AutoConfig.for_model(**CONFIGS[family]).to_dict(), SIZES[family]
    assert differences(config, sizes, "config.json") == []
    silent = {"model_type", "max_position_embeddings", "bos_token_id", "eos_token_id"}
    silent |= {"pad_token_id", "num_nextn_predict_layers", "rope_parameters"}
    for key in CONFIGS[family].keys() - silent:
        value = CONFIGS[family][key]
        found = differences({**config, key: _other(value)}, sizes, "config.json")
        assert [problem.what for problem in found] == [key]


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return [] if isinstance(value, list) else (value or 0) + 1


@pytest.mark.parametrize("family", SIZES)
def test_transformers_reads_our_config_as_its_own(family: str, tmp_path: Path):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(**CONFIGS[family]).to_dict()
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    config = config_of(SIZES[family]) | {key: CONFIGS[family][key] for key in kept}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert _rope(theirs).items() <= _rope(ours).items()
    # What is nobody's number, or of no layer; ours writes out what theirs leaves to the library.
    silent = {"architectures", "_name_or_path", "rope_parameters"}
    silent |= {"intermediate_size"} - CONFIGS[family].keys()
    assert {key: ours[key] for key in theirs.keys() - silent} == {
        key: theirs[key] for key in theirs.keys() - silent
    }


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """rope_parameters in one level, as Gemma 3 has them by kind of layer."""
    found: dict[str, Any] = {}
    for key, value in config["rope_parameters"].items():
        nested = value.items() if isinstance(value, dict) else [("", value)]
        found |= {f"{key}.{name}": entry for name, entry in nested}
    return found


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("llama3", {"qk_norm": True}, "model.qk_norm: got true; LlamaForCausalLM has false"),
        ("llama3", {"sliding_window": 64}, "model.sliding_window: got 64"),
        ("gemma", {"activation": "silu"}, 'GemmaForCausalLM has "gelu_tanh"'),
        ("qwen3", {"moe": SIZES["mixtral"].moe}, "Qwen3ForCausalLM has none"),
        ("mixtral", {"moe": None}, "model.moe: missing; MixtralForCausalLM has one"),
        ("mixtral", {"ffn_dim": 96}, "model.ffn_dim: got 96; MixtralForCausalLM has 0"),
        (
            "deepseek_v3",
            {"rope_scaling": RopeScaling(kind="yarn", mscale_all_dim=1.0)},
            "mscale 0 and mscale_all_dim 1; set both, or neither",
        ),
    ],
)
def test_a_model_that_its_architecture_cannot_be_is_refused(
    family: str, changes: dict[str, Any], said: str
):
    with pytest.raises(ConfigError) as caught:
        config_of(replace(SIZES[family], **changes))
    assert said in str(caught.value)
