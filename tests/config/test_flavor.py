"""A flavor's arithmetic against the numbers that the models' authors and torchtitan give."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from titan_recipes.config.flavor import (
    flavor_problems,
    flops_per_token,
    layer_window,
    num_active_params,
    num_params,
)
from titan_recipes.config.schema.model import LatentAttention, Model, MoE, RopeScaling


def llama(dim: int, n_layers: int, heads: tuple[int, int, int], ffn_dim: int, **more: Any) -> Model:
    n_heads, n_kv_heads, head_dim = heads
    sizes = {"dim": dim, "n_layers": n_layers, "ffn_dim": ffn_dim, "family": "llama3"}
    shape = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
    return Model(**{**sizes, **shape, "vocab_size": 128256, **more})


def gemma(dim: int, n_layers: int, heads: tuple[int, int, int], ffn_dim: int, **more: Any) -> Model:
    given = {"family": "gemma", "vocab_size": 256000, "tie_embeddings": True, **more}
    return llama(dim, n_layers, heads, ffn_dim, **given)


LLAMA2: dict[str, Any] = {"family": "llama2", "vocab_size": 32000}
QWEN3: dict[str, Any] = {"family": "qwen3", "vocab_size": 151936, "qk_norm": True}
QWEN3_TIED: dict[str, Any] = {**QWEN3, "tie_embeddings": True}
GEMMA2: dict[str, Any] = {
    "family": "gemma2", "post_norms": True, "sliding_window": 4096, "global_every": 2,
}  # fmt: skip
GEMMA3: dict[str, Any] = {
    "family": "gemma3", "post_norms": True, "qk_norm": True, "vocab_size": 262144,
    "sliding_window": 1024, "global_every": 6, "rope_theta_local": 10000.0,
}  # fmt: skip
MLA = LatentAttention(kv_lora_rank=512, q_lora_rank=1536, rope_head_dim=64, v_head_dim=128)
DEEPSEEK: dict[str, Any] = {"family": "deepseek_v3", "vocab_size": 102400, "mla": MLA}
GPT_OSS: dict[str, Any] = {
    "family": "gpt_oss", "vocab_size": 201088, "attention_bias": True, "attention_sinks": True,
    "sliding_window": 128, "global_every": 2, "activation": "clamped_swiglu",
}  # fmt: skip


def moe(num_experts: int, experts_per_token: int, ffn_dim: int, **more: Any) -> MoE:
    sizes = {"num_experts": num_experts, "experts_per_token": experts_per_token}
    return MoE(**sizes, ffn_dim=ffn_dim, **more)


def gpt_oss_moe(num_experts: int) -> MoE:
    return moe(num_experts, 4, 2880, router_bias=True, expert_bias=True)


DENSE = {
    "llama2_271m": (llama(1024, 16, (8, 8, 128), 2816, **LLAMA2), 271_090_688),
    "llama2_1b": (llama(2048, 18, (16, 16, 128), 5632, **LLAMA2), 1_055_991_808),
    "llama2_7b": (llama(4096, 32, (32, 32, 128), 11008, **LLAMA2), 6_738_415_616),
    "llama2_13b": (llama(5120, 40, (40, 40, 128), 13824, **LLAMA2), 13_015_864_320),
    "llama2_26b": (llama(5120, 80, (40, 40, 128), 13824, **LLAMA2), 25_704_043_520),
    "llama2_70b": (llama(8192, 80, (64, 8, 128), 28672, **LLAMA2), 68_976_648_192),
    "codellama_34b": (llama(8192, 48, (64, 8, 128), 22016, **LLAMA2), 33_743_970_304),
    "llama3_debug": (llama(256, 6, (16, 16, 16), 768, vocab_size=2048), 6_163_712),
    "llama3_1b": (llama(2048, 16, (32, 8, 64), 8192, tie_embeddings=True), 1_235_814_400),
    "llama3_3b": (llama(3072, 28, (24, 8, 128), 8192, tie_embeddings=True), 3_212_749_824),
    "llama3_8b": (llama(4096, 32, (32, 8, 128), 14336), 8_030_261_248),
    "llama3_70b": (llama(8192, 80, (64, 8, 128), 28672), 70_553_706_496),
    "llama3_405b": (llama(16384, 126, (128, 8, 128), 53248), 405_853_388_800),
    "gemma_2b": (gemma(2048, 18, (8, 1, 256), 16384), 2_506_172_416),
    "gemma_7b": (gemma(3072, 28, (16, 16, 256), 24576), 8_537_680_896),
    "gemma2_9b": (gemma(3584, 42, (16, 8, 256), 14336, **GEMMA2), 9_241_705_984),
    "gemma2_27b": (gemma(4608, 46, (32, 16, 128), 36864, **GEMMA2), 27_227_128_320),
    "gemma3_1b": (gemma(1152, 26, (4, 1, 256), 6912, **GEMMA3), 999_885_952),
    # 262,144 rows as published; the text part of Hugging Face's checkpoint has 64 more.
    "gemma3_4b": (gemma(2560, 34, (8, 4, 256), 10240, **GEMMA3), 3_880_099_328),
    "qwen3_0.6b": (llama(1024, 28, (16, 8, 128), 3072, **QWEN3_TIED), 596_049_920),
    "qwen3_1.7b": (llama(2048, 28, (16, 8, 128), 6144, **QWEN3_TIED), 1_720_574_976),
    "qwen3_4b": (llama(2560, 36, (32, 8, 128), 9728, **QWEN3_TIED), 4_022_468_096),
    "qwen3_8b": (llama(4096, 36, (32, 8, 128), 12288, **QWEN3), 8_190_735_360),
    "qwen3_14b": (llama(5120, 40, (40, 8, 128), 17408, **QWEN3), 14_768_307_200),
    "qwen3_32b": (llama(5120, 64, (64, 8, 128), 25600, **QWEN3), 32_762_123_264),
}
"""name: (flavor, parameters)."""

SPARSE = {
    "mixtral_8x7b": (
        llama(4096, 32, (32, 8, 128), 0, family="mixtral", vocab_size=32000, moe=moe(8, 2, 14336)),
        46_702_792_704, 12_879_925_248,
    ),
    "qwen3_30b_a3b": (
        llama(2048, 48, (32, 4, 128), 0, **QWEN3 | {"family": "qwen3_moe"}, moe=moe(128, 8, 768)),
        30_532_122_624, 3_353_032_704,
    ),
    "qwen3_235b_a22b": (
        llama(4096, 94, (64, 4, 128), 0, **QWEN3 | {"family": "qwen3_moe"}, moe=moe(128, 8, 1536)),
        235_093_634_560, 22_190_763_520,
    ),
    "deepseek_16b": (
        llama(2048, 27, (16, 16, 192), 10944, **DEEPSEEK | {"mla": replace(MLA, q_lora_rank=0)},
              moe=moe(64, 6, 1408, num_shared_experts=2, num_dense_layers=1)),
        15_706_484_224, 2_661_150_208,
    ),
    "deepseek_236b": (
        llama(5120, 60, (128, 128, 192), 12288, **DEEPSEEK,
              moe=moe(160, 6, 1536, num_shared_experts=2, num_dense_layers=1)),
        235_741_434_880, 21_375_800_320,
    ),
    "deepseek_671b": (
        llama(7168, 61, (128, 128, 192), 18432, **DEEPSEEK | {"vocab_size": 129280},
              moe=moe(256, 8, 2048, num_shared_experts=1, num_dense_layers=3)),
        671_026_404_352, 37_552_282_624,
    ),
    "gpt_oss_20b": (
        llama(2880, 24, (64, 8, 64), 0, **GPT_OSS, moe=gpt_oss_moe(32)),
        20_914_757_184, 4_187_440_704,
    ),
    "gpt_oss_120b": (
        llama(2880, 36, (64, 8, 64), 0, **GPT_OSS, moe=gpt_oss_moe(128)),
        116_829_156_672, 5_711_982_912,
    ),
}  # fmt: skip
"""name: (flavor, parameters, those that a token meets). Embedding and output count as met, so that
gpt-oss 20b says 4.2 here and 3.6 billion, without the embedding's lookup, on its card."""


@pytest.mark.parametrize("name", DENSE)
def test_parameters_of_dense_flavors_are_the_published_ones(name: str) -> None:
    model, expected = DENSE[name]
    assert num_params(model) == num_active_params(model) == expected
    assert complaints(model) == []


@pytest.mark.parametrize("name", SPARSE)
def test_parameters_of_flavors_with_experts_are_the_published_ones(name: str) -> None:
    model, expected, active = SPARSE[name]
    assert num_params(model) == expected
    assert num_active_params(model) == active
    assert complaints(model) == []


def test_flops_of_a_dense_flavor_are_six_a_parameter_plus_attention() -> None:
    model, _ = DENSE["llama3_8b"]
    matmul = 8_030_261_248 - 128256 * 4096
    assert flops_per_token(model, 8192) == 6 * matmul + 12 * 32 * 4096 * 8192
    tied, _ = DENSE["llama3_1b"]
    assert flops_per_token(tied, 4096) == 6 * 1_235_814_400 + 12 * 16 * 2048 * 4096


def test_flops_of_sliding_layers_count_the_window_and_no_more_than_the_sequence() -> None:
    model, _ = DENSE["gemma3_1b"]
    # 26 layers, every 6th global: 4 of them.
    assert [layer_window(model, layer) for layer in range(6)] == [1024] * 5 + [0]
    of_a_key = 12 * 4 * 256
    long = flops_per_token(model, 32768) - 6 * 999_885_952
    assert long == of_a_key * (22 * 1024 + 4 * 32768)
    assert flops_per_token(model, 512) - 6 * 999_885_952 == of_a_key * 26 * 512


def test_flops_with_experts_count_those_that_a_token_visits() -> None:
    model, _, active = SPARSE["qwen3_30b_a3b"]
    matmul = active - 151936 * 2048
    assert flops_per_token(model, 4096) == 6 * matmul + 12 * 48 * 32 * 128 * 4096


def test_flops_of_latent_attention_count_key_and_value_widths() -> None:
    model, _, active = SPARSE["deepseek_671b"]
    matmul = active - 129280 * 7168
    assert flops_per_token(model, 4096) == 6 * matmul + 6 * 61 * 128 * (192 + 128) * 4096


def test_layer_norm_without_weight_has_no_parameters() -> None:
    model, params = DENSE["llama3_debug"]
    assert num_params(replace(model, norm="layernorm")) == params
    assert num_params(replace(model, norm="np_layernorm")) == params - (2 * 6 + 1) * 256


# --- contradictions -------------------------------------------------------------------------------

TINY = llama(64, 4, (4, 2, 16), 128)
MIXED = replace(TINY, ffn_dim=0, moe=moe(8, 2, 32))
LATENT = replace(
    TINY, n_kv_heads=4, mla=LatentAttention(kv_lora_rank=16, rope_head_dim=8, v_head_dim=12)
)


def complaints(model: Model) -> list[str]:
    def problems() -> Iterator[str]:
        for problem in flavor_problems(model, lambda key: f"<{key}>"):
            assert problem.where == f"<{problem.what}>"
            yield f"{problem.what}: {problem.got}; {problem.cure}"

    return list(problems())


def grouped(**more: Any) -> Model:
    return replace(MIXED, moe=replace(moe(8, 2, 32), **more))


def stretched(**more: Any) -> Model:
    return replace(TINY, rope_scaling=RopeScaling(**more))


CONTRADICTIONS = {
    "kv_heads": (
        replace(TINY, n_kv_heads=3),
        "model.n_kv_heads: 3 does not divide n_heads = 4; use 1, 2 or 4",
    ),
    "odd_head": (
        replace(TINY, head_dim=15),
        "model.head_dim: got 15; must be even: rotary embeddings turn pairs",
    ),
    "global_without_window": (
        replace(TINY, global_every=2),
        "model.global_every: got 2, but no layer has a sliding window; "
        "set model.sliding_window, or leave it out",
    ),
    "local_theta_without_window": (
        replace(TINY, rope_theta_local=1e4),
        "model.rope_theta_local: got 10000.0, but no layer has a sliding window; "
        "set model.sliding_window, or leave it out",
    ),
    "offset_of_layernorm": (
        replace(TINY, norm="layernorm", norm_unit_offset=True),
        'model.norm_unit_offset: got true, but norm is "layernorm"; '
        'set model.norm = "rmsnorm", or leave it out',
    ),
    "mla_kv_heads": (
        replace(LATENT, n_kv_heads=2),
        "model.n_kv_heads: 2, but latent attention has as many as n_heads = 4; use 4",
    ),
    "mla_all_rotated": (
        replace(LATENT, mla=LatentAttention(kv_lora_rank=16, rope_head_dim=16, v_head_dim=12)),
        "model.mla.rope_head_dim: 16 leaves nothing of head_dim = 16 unrotated; use less than 16",
    ),
    "mla_odd": (
        replace(LATENT, mla=LatentAttention(kv_lora_rank=16, rope_head_dim=7, v_head_dim=12)),
        "model.mla.rope_head_dim: got 7; must be even: rotary embeddings turn pairs",
    ),
    "mla_bias": (
        replace(LATENT, attention_bias=True),
        "model.attention_bias: got true, but latent attention ([model.mla]) has none; leave it out",
    ),
    "mla_qk_norm": (
        replace(LATENT, qk_norm=True),
        "model.qk_norm: got true, but latent attention ([model.mla]) has none; leave it out",
    ),
    "mla_sinks": (
        replace(LATENT, attention_sinks=True),
        "model.attention_sinks: got true, but latent attention ([model.mla]) has none; "
        "leave it out",
    ),
    "llama3_factors": (
        stretched(low_freq_factor=4.0),
        "model.rope_scaling.high_freq_factor: got 4.0; must be > low_freq_factor = 4.0",
    ),
    "yarn_betas": (
        stretched(kind="yarn", beta_fast=1.0),
        "model.rope_scaling.beta_fast: got 1.0; must be > beta_slow = 1.0",
    ),
    "yarn_theta": (
        replace(stretched(kind="yarn"), rope_theta=1.0),
        "model.rope_theta: got 1.0; must be > 1 with yarn",
    ),
    "mscale_of_linear": (
        stretched(kind="linear", mscale=1.0),
        'model.rope_scaling.mscale: got 1.0, but kind is "linear"; '
        'set kind = "yarn", or leave it out',
    ),
    "no_ffn": (
        replace(TINY, ffn_dim=0),
        "model.ffn_dim: got 0, but 4 of 4 layers have a dense feed-forward; set its width",
    ),
    "no_ffn_in_dense_layers": (
        grouped(num_dense_layers=1),
        "model.ffn_dim: got 0, but 1 of 4 layers have a dense feed-forward; set its width",
    ),
    "unused_ffn": (
        replace(MIXED, ffn_dim=128),
        "model.ffn_dim: got 128, but every layer has experts ([model.moe]); "
        "use 0; the experts' width is model.moe.ffn_dim",
    ),
    "all_dense": (
        replace(grouped(num_dense_layers=4), ffn_dim=128),
        "model.moe.num_dense_layers: 4 leaves no layer of n_layers = 4 with experts; "
        "use less than 4",
    ),
    "too_many_per_token": (
        grouped(experts_per_token=9),
        "model.moe.experts_per_token: 9 > num_experts = 8; use at most 8",
    ),
    "groups": (
        grouped(num_groups=3),
        "model.moe.num_groups: 3 does not divide num_experts = 8; use 1, 2, 4 or 8",
    ),
    "limited_groups": (
        grouped(num_groups=2, num_limited_groups=3),
        "model.moe.num_limited_groups: 3 > num_groups = 2; use at most 2",
    ),
    "too_many_for_open_groups": (
        grouped(num_groups=4, experts_per_token=3),
        "model.moe.experts_per_token: 3 > 2, the experts in num_limited_groups = 1 of 4 groups; "
        "use at most 2, or open more groups",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_told_with_its_cure_and_nothing_else_is(name: str) -> None:
    model, expected = CONTRADICTIONS[name]
    assert complaints(model) == [expected]


def test_every_contradiction_is_told_at_once() -> None:
    model = replace(TINY, n_kv_heads=3, head_dim=15, ffn_dim=0, global_every=2)
    keys = [line.split(":")[0] for line in complaints(model)]
    assert keys == ["model.n_kv_heads", "model.global_every", "model.head_dim", "model.ffn_dim"]


@pytest.mark.parametrize("model", [TINY, MIXED, LATENT])
def test_flavors_that_agree_are_not_complained_about(model: Model) -> None:
    assert complaints(model) == []
