"""Tensor parallelism on the laptop: what degrees divide, and what async needs."""

import pytest
from flavors import flavor_overrides

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.resolve import Resolution
from titan_recipes.errors import ConfigError

TP = "parallelism.tensor_parallel_degree="
ASYNC = "parallelism.enable_async_tensor_parallel=true"
COMPILED = "compile.enable=true"


def resolved(family: str, *settings: str, gpu: str = "cpu", ranks: int = 4) -> Resolution:
    plan = (f"plan.gpu='{gpu}'", f"plan.gpus_per_node={ranks}", "training.seq_len=64")
    batch = "training.global_batch_size=-1"
    overrides = [*flavor_overrides(family), *plan, batch, *settings]
    return find_bundle("llama3_debug").resolve(overrides=overrides)


def problems(family: str, *settings: str, gpu: str = "cpu", ranks: int = 4) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolved(family, *settings, gpu=gpu, ranks=ranks)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("family", "settings", "ranks", "message"),
    [
        (
            "llama3",
            (TP + "8",),
            8,
            "tensor_parallel_degree: 8 does not divide n_kv_heads = 4; use 1, 2 or 4",
        ),
        (
            "llama3",
            (TP + "4", "model.vocab_size=2050", "model.ffn_dim=126"),
            4,
            "4 does not divide vocab_size = 2050, ffn_dim = 126; use 1 or 2",
        ),
        (
            "deepseek_v3",
            (TP + "4", "model.moe.ffn_dim=33"),
            4,
            "4 does not divide moe.num_shared_experts * moe.ffn_dim = 66; use 1 or 2",
        ),
        (
            "llama3",
            (TP + "4", "training.seq_len=66"),
            4,
            "training.seq_len: 66 is not a multiple of tp(4) * cp(1) = 4; use 64: ranks split a "
            "sequence evenly",
        ),
        (
            "llama3",
            (TP + "4", "validation.enable=true", "validation.seq_len=70"),
            4,
            "validation.seq_len: 70 is not a multiple of tp(4) * cp(1) = 4; use 68",
        ),
    ],
)
def test_degree_that_does_not_divide_names_the_numbers_and_the_legal_degrees(
    family: str, settings: tuple[str, ...], ranks: int, message: str
) -> None:
    found = problems(family, *settings, ranks=ranks)
    assert len(found) == 1
    assert message in found[0]


def test_latent_attention_has_no_kv_heads_and_experts_are_not_split() -> None:
    # 8 heads; routed experts of width 33 stay whole.
    settings = (TP + "8", "model.moe.ffn_dim=36", "model.n_kv_heads=8")
    assert resolved("deepseek_v3", *settings, ranks=8).job.derived.tp == 8
    settings = (TP + "4", "model.moe.ffn_dim=33")
    assert resolved("qwen3_moe", *settings).job.derived.tp == 4


@pytest.mark.parametrize("gpu", ["cpu", "any"])
def test_async_without_cuda_is_refused_by_name(gpu: str) -> None:
    (found,) = problems("llama3", TP + "2", ASYNC, COMPILED, gpu=gpu)
    assert found.endswith(
        f'enable_async_tensor_parallel: needs CUDA, but plan.gpu = "{gpu}"; name a GPU, or leave '
        "it out"
    )


@pytest.mark.parametrize(
    "settings",
    [(), (COMPILED, "compile.components=['loss']"), (COMPILED, "compile.backend='aot_eager'")],
)
def test_async_without_blocks_that_inductor_compiles_is_refused(settings: tuple[str, ...]) -> None:
    (found,) = problems("llama3", TP + "2", ASYNC, *settings, gpu="h100")
    assert "enable_async_tensor_parallel: needs compiled blocks; set compile.enable = true" in found
    assert resolved("llama3", TP + "2", ASYNC, COMPILED, gpu="h100").job.compile.enable


def test_keys_of_tensor_parallelism_are_dormant_at_degree_1() -> None:
    keys = (ASYNC, "parallelism.disable_loss_parallel=true")
    for key in keys:
        why = f"--set: {key.partition('=')[0]} has no effect: tensor_parallel_degree is 1"
        assert why in resolved("llama3", *keys).dormant
    assert not any(
        "loss_parallel" in note for note in resolved("llama3", TP + "2", keys[1]).dormant
    )
