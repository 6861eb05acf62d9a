"""Every layout trains the same model: losses and gradient norms against one process."""

from pathlib import Path

import pytest
from parity import difference, train_all
from training import column, largest_difference, rows, small_job, train, train_here


@pytest.fixture(scope="module")
def one_process(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, session_cache: Path
) -> Path:
    """20 steps in one process, fp32, gradient accumulation over 4 passes."""
    directory = tmp_path_factory.mktemp("one-process")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        train_here(directory, small_job(corpus))
    return directory


TINY = (
    "model.dim=64",
    "model.n_heads=4",
    "model.n_kv_heads=2",
    "model.ffn_dim=128",
    "training.steps=6",
)
BF16 = "training.mixed_precision_param='bfloat16'"
TIED = ("model.tie_embeddings=true", "training.steps=6")
TWO_RANKS = {
    "fsdp": (),
    "by op, never resharded": (
        "activation_checkpoint.mode='selective'",
        "activation_checkpoint.selective_ac_option='op'",
        "parallelism.fsdp_reshard_after_forward='never'",
        "checkpoint.async_mode='async'",
    ),
    "tied": TIED,
    "bf16": (*TINY, BF16),
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, corpus: Path, session_cache: Path) -> Path:
    """TWO_RANKS, each in a directory of its name."""
    root = tmp_path_factory.mktemp("two-ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        train_all(root, {name: small_job(corpus, *s, ranks=2) for name, s in TWO_RANKS.items()})
    return root


@pytest.mark.parametrize("name", ["fsdp", "by op, never resharded"])
def test_two_ranks_equal_one_process(one_process: Path, two_ranks: Path, name: str) -> None:
    assert len(column(one_process, "loss")) == 20
    assert difference(one_process, two_ranks / name) <= 1e-6
    assert column(one_process, "loss")[-1] < column(one_process, "loss")[0] - 0.3


@pytest.mark.parametrize(
    ("setting", "tolerance"),
    [
        ("activation_checkpoint.mode='full'", 0),
        ("activation_checkpoint.mode='selective'", 0),
        (
            "activation_checkpoint={mode='selective',selective_ac_option='op',save_ops=['aten.mm']}",
            0,
        ),
        ("optimizer.implementation='foreach'", 1e-6),
        ("optimizer.implementation='for-loop'", 1e-6),
        ("training.dataloader.num_workers=1", 0),
        ("training.loss_chunk_tokens=0", 0),
        ("training.loss_chunk_tokens=16", 1e-5),
        ("data.read_ahead=0", 0),
    ],
)
def test_options_that_keep_the_numbers_keep_them(
    one_process: Path, tmp_path: Path, corpus: Path, setting: str, tolerance: float
) -> None:
    train_here(tmp_path, small_job(corpus, setting, "training.steps=5"))
    for name in ("loss", "grad_norm"):
        expected = column(one_process, name)[:3]
        assert largest_difference(expected, column(tmp_path, name)[:3]) <= tolerance


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated:DeprecationWarning")
def test_memory_budget_keeps_the_numbers(one_process: Path, tmp_path: Path, corpus: Path) -> None:
    import torch._functorch.config as functorch

    settings = (
        "activation_checkpoint={mode='memory_budget',memory_budget=0.3}",
        "compile={enable=true,backend='aot_eager_decomp_partition'}",
        "training.steps=5",
    )
    with functorch.patch(activation_memory_budget=1.0):
        train_here(tmp_path, small_job(corpus, *settings))
        assert functorch.activation_memory_budget == 0.3
    for name in ("loss", "grad_norm"):
        expected = column(one_process, name)[:3]
        assert largest_difference(expected, column(tmp_path, name)[:3]) <= 1e-5


@pytest.mark.slow
def test_compiled_blocks_and_loss_equal_eager_and_are_kept_for_the_next_run(
    one_process: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    cache = tmp_path / "compiled"
    settings = ("compile.enable=true", f"compile.cache_dir='{cache}'")
    output = train(tmp_path / "run", small_job(corpus, *settings, ranks=2)).stdout
    for name in ("loss", "grad_norm"):
        assert largest_difference(column(one_process, name), column(tmp_path / "run", name)) <= 1e-5
    # Two blocks are one graph, the loss another; no step after the first compiles again.
    assert "step 1: torch.compile made 2 graphs\n" in output
    assert output.count("torch.compile made") == 1
    kept = set(cache.rglob("*.so"))
    assert kept
    train(tmp_path / "next", small_job(corpus, *settings, "training.steps=1", ranks=2))
    assert set(cache.rglob("*.so")) == kept


def test_tied_embeddings_on_two_ranks_equal_one_process(
    two_ranks: Path, tmp_path: Path, corpus: Path
) -> None:
    train_here(tmp_path, small_job(corpus, *TIED))
    assert difference(tmp_path, two_ranks / "tied") <= 1e-6


def test_bf16_compute_is_the_same_on_one_rank_and_two_and_close_to_fp32(
    two_ranks: Path, tmp_path: Path, corpus: Path
) -> None:
    train_here(tmp_path / "fp32", small_job(corpus, *TINY))
    train_here(tmp_path / "one", small_job(corpus, *TINY, BF16))
    # Passes are as large: sums differ in order only, and in float32.
    assert difference(tmp_path / "one", two_ranks / "bf16") <= 1e-5
    expected = column(tmp_path / "fp32", "loss")
    assert 0 < largest_difference(expected, column(tmp_path / "one", "loss")) <= 2e-3


def test_deterministic_run_repeats_bit_for_bit(tmp_path: Path, corpus: Path) -> None:
    for name in ("a", "b"):
        settings = ("debug.deterministic=true", "training.steps=5")
        train_here(tmp_path / name, small_job(corpus, *settings))
    for name in ("loss", "grad_norm"):
        assert column(tmp_path / "a", name) == column(tmp_path / "b", name)


def test_seed_changes_the_run(one_process: Path, tmp_path: Path, corpus: Path) -> None:
    train_here(tmp_path, small_job(corpus, "debug.seed=1", "training.steps=2"))
    assert column(tmp_path, "loss")[0] != column(one_process, "loss")[0]


def test_rows_hold_the_metrics_of_the_contract(one_process: Path) -> None:
    first = rows(one_process)[0]
    assert list(first) == [
        "step", "loss", "grad_norm", "lr", "tokens_per_second", "mfu", "memory_gib", "time",
    ]  # fmt: skip
    assert first["mfu"] is None
    assert first["lr"] == pytest.approx(rows(one_process)[4]["lr"] / 5)
