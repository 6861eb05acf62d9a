"""Context parallelism: a sequence dealt over ranks, its attention, and whole trainings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import attention_ranks
import pytest
import torch
from parity import difference, parity_job, train_all
from training import largest_difference, rows, train_here

from titan_recipes.config.job import Job
from titan_recipes.trainer.data.loader import Batch
from titan_recipes.trainer.parallel.block_attention import BlockSum, attend
from titan_recipes.trainer.parallel.sequence_split import SequenceSplit, take_part

RING = 'parallelism.context_parallel_rotate_method="alltoall"'
IN_ORDER = 'parallelism.context_parallel_load_balancer=""'
BY_OP = (
    'activation_checkpoint.mode="selective"',
    'activation_checkpoint.selective_ac_option="op"',
)
WINDOWS = ("model.sliding_window=20", "model.global_every=2")


def cp(degree: int, *more: str) -> list[str]:
    return [f"parallelism.context_parallel_degree={degree}", *more]


# --- how a sequence is dealt out ------------------------------------------------------------------


def test_headtail_gives_each_rank_an_early_and_a_late_chunk() -> None:
    spans = [SequenceSplit(2, rank, True).spans(16) for rank in range(2)]
    assert spans == [[range(4), range(12, 16)], [range(4, 8), range(8, 12)]]


def test_in_order_gives_each_rank_one_chunk() -> None:
    spans = [SequenceSplit(4, rank, False).spans(16) for rank in range(4)]
    assert spans == [[range(4)], [range(4, 8)], [range(8, 12)], [range(12, 16)]]


@pytest.mark.parametrize("headtail", [True, False])
def test_parts_of_all_ranks_in_order_are_the_sequence(headtail: bool) -> None:
    whole = torch.arange(2 * 24).view(2, 24)
    splits = [SequenceSplit(3, rank, headtail) for rank in range(3)]
    parts = [split.take(whole, 1) for split in splits]
    assert splits[0].in_order(parts, 1).equal(whole)


@pytest.mark.parametrize("headtail", [True, False])
@pytest.mark.parametrize("ranks", [2, 4])
def test_blocks_cover_exactly_the_keys_that_causality_shows(headtail: bool, ranks: int) -> None:
    seq_len, part = 32, 32 // ranks
    places = torch.arange(seq_len)
    for rank in range(ranks):
        split = SequenceSplit(ranks, rank, headtail)
        mine = split.take(places, 0)
        covered = torch.zeros(part, seq_len, dtype=torch.int64)
        for owner in range(ranks):
            if (seen := split.seen(owner, part)) is None:
                continue
            queries, keys, causal = seen
            theirs = SequenceSplit(ranks, owner, headtail).take(places, 0)[keys]
            block = torch.ones(len(mine[queries]), len(theirs), dtype=torch.int64)
            whole = covered[queries]
            whole[:, theirs] += block.tril() if causal else block
        assert covered.equal((mine[:, None] >= places).long())


def test_a_rank_takes_tokens_and_labels_of_the_same_positions() -> None:
    tokens = torch.arange(8).view(1, 8)
    batch = take_part(Batch(tokens, tokens + 1), SequenceSplit(2, 1, True))
    assert batch.tokens_BS.tolist() == [[2, 3, 4, 5]]
    assert batch.labels_BS.tolist() == [[3, 4, 5, 6]]
    whole = Batch(tokens, tokens + 1)
    assert take_part(whole, None) is whole


# --- attention ------------------------------------------------------------------------------------


def test_blocks_of_keys_join_to_the_softmax_over_all() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 8) * 4 for _ in range(3))
    total, everything = BlockSum(), slice(None)
    total.add(*attend(q, k, v, causal=True, scale=1.0), everything)
    late = slice(3, None)
    more_k, more_v = torch.randn(1, 2, 5, 8) * 4, torch.randn(1, 2, 5, 8)
    total.add(*attend(q[:, :, late], more_k, more_v, causal=False, scale=1.0), late)
    scores = q @ torch.cat([k, more_k], dim=2).mT
    seen = torch.cat([torch.ones(6, 6).tril(), torch.zeros(6, 5)], dim=1)
    seen[3:, 6:] = 1
    shares = scores.masked_fill(seen == 0, -torch.inf).softmax(-1)
    torch.testing.assert_close(total.out_BNSV, shares @ torch.cat([v, more_v], dim=2))


def test_attention_over_ranks_equals_attention_in_one_piece(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::FutureWarning", "-m", "torch.distributed.run"]
    command += ["--standalone", "--nproc-per-node=4", attention_ranks.__file__]
    done = subprocess.run(
        [*command, str(tmp_path / "worst.json")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    worst = json.loads((tmp_path / "worst.json").read_text())
    assert list(worst) == list(attention_ranks.CASES)
    assert {case: value for case, value in worst.items() if value > 1e-5} == {}


# --- training -------------------------------------------------------------------------------------


def short_job(corpus: Path, *overrides: str, ranks: int = 1, dp: int = 1) -> Job:
    """8 steps of a parity job; `make parity` has the full length."""
    return parity_job(corpus, "training.steps=8", *overrides, ranks=ranks, dp=dp)


def validating(corpus: Path) -> list[str]:
    """Validation on the training text, at step 4 and 8."""
    data = ["validation.dataset='text_validation'", f"validation.dataset_path='{corpus}'"]
    sizes = ["validation.seq_len=64", "validation.local_batch_size=2", "validation.steps=2"]
    return ["validation.enable=true", "validation.freq=4", *data, *sizes]


@pytest.fixture(scope="module")
def one_process(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, session_cache: Path
) -> Path:
    """plain/ and windows/: what the ranks must train, too."""
    root = tmp_path_factory.mktemp("one-process")
    plain = short_job(corpus, *validating(corpus))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        train_here(root / "plain", plain)
        train_here(root / "windows", short_job(corpus, *WINDOWS))
    return root


@pytest.mark.slow
def test_two_ranks_train_as_one_process(one_process: Path, tmp_path: Path, corpus: Path) -> None:
    cases = {
        "plain": cp(2, *validating(corpus)),
        "plain, ring by op": cp(2, RING, *BY_OP),
        "plain, compiled": cp(2, "compile.enable=true", "compile.backend='aot_eager'"),
        "windows, full": cp(2, "activation_checkpoint.mode='full'", *WINDOWS),
    }
    jobs = {name: short_job(corpus, *overrides, ranks=2) for name, overrides in cases.items()}
    bf16 = ("training.mixed_precision_param='bfloat16'", RING)
    train_all(tmp_path, {**jobs, "bf16": short_job(corpus, *cp(2, *bf16), ranks=2)})
    for name in cases:
        assert difference(one_process / name.split(",")[0], tmp_path / name) <= 1e-5, name
    assert 0 < difference(one_process / "plain", tmp_path / "bf16") < 0.05
    losses = [
        [row["loss"] for row in rows(root / "plain", "validation.jsonl")]
        for root in (one_process, tmp_path)
    ]
    assert len(losses[0]) == 2
    assert largest_difference(*losses) <= 1e-5


@pytest.mark.slow
def test_four_ranks_train_as_one_process(one_process: Path, tmp_path: Path, corpus: Path) -> None:
    cases = {
        "ring": (1, cp(4, RING)),
        "fsdp, in order": (2, cp(2, IN_ORDER)),
    }
    jobs = {
        name: short_job(corpus, *overrides, ranks=4, dp=dp)
        for name, (dp, overrides) in cases.items()
    }
    train_all(tmp_path, jobs)
    for name in cases:
        assert difference(one_process / "plain", tmp_path / name) <= 1e-5, name


def test_checkpoints_go_from_one_process_to_ranks_and_back(
    one_process: Path, tmp_path: Path, corpus: Path
) -> None:
    saved = ("checkpoint.enable=true", "lr_scheduler.total_steps=8")
    half = (*saved, "training.steps=4")
    there, back = tmp_path / "there", tmp_path / "back"
    train_here(there, short_job(corpus, *half))
    train_all(
        tmp_path,
        {
            "there": short_job(corpus, *cp(2, *saved), ranks=2),
            "back": short_job(corpus, *cp(2, *half), ranks=2),
        },
    )
    train_here(back, short_job(corpus, *saved))
    for run in (there, back):
        assert difference(one_process / "plain", run) <= 1e-5
