"""Batches: the same samples in the same order at any number of ranks, resumed at any other."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_corpora import write_jsonl

from titan_recipes.config.job import Job
from titan_recipes.config.schema import Data, DataLoader, DataSource, Training, Validation
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.data.loader import Batch, open_training_data, open_validation_data
from titan_recipes.trainer.data.prepare import ensure_prepared
from titan_recipes.trainer.data.shards import TokenShards

SEQ_LEN = 16


@pytest.fixture
def job(make_job, tmp_path: Path) -> Job:
    """A job on one small file; global batch of 8 sequences."""
    path = write_jsonl(tmp_path / "a.jsonl", rows=60)
    training = Training(dataset="text", dataset_path=str(path), seq_len=SEQ_LEN, local_batch_size=2)
    return make_job(training=training)


def _key(batch: Batch) -> list[tuple[int, ...]]:
    """The batch's sequences, to be compared."""
    return [tuple(row) for row in torch.cat([batch.tokens_BS, batch.labels_BS], 1).tolist()]


def _steps(ranks, count: int) -> list[list[tuple[int, ...]]]:
    """The sequences of each global batch of 8, in the order of the samples."""
    steps = []
    for _ in range(count):
        step = []
        while len(step) < 8:
            for rank in ranks:
                step += _key(rank.next_batch())
        steps.append(step)
    return steps


def _open(job: Job, dp_degree: int, state=None) -> list:
    ranks = [open_training_data(job, dp_rank=r, dp_degree=dp_degree) for r in range(dp_degree)]
    for rank in ranks:
        if state is not None:
            rank.load_state_dict(state)
    return ranks


def test_batch_labels_are_the_tokens_one_later(job: Job) -> None:
    batch = open_training_data(job, dp_rank=0, dp_degree=1).next_batch()
    assert batch.tokens_BS.shape == batch.labels_BS.shape == (2, SEQ_LEN)
    assert batch.tokens_BS.dtype == batch.labels_BS.dtype == torch.int64
    assert batch.tokens_BS.is_contiguous()
    assert batch.labels_BS.is_contiguous()
    assert torch.equal(batch.tokens_BS[:, 1:], batch.labels_BS[:, :-1])
    assert not torch.equal(batch.tokens_BS, batch.labels_BS)


def test_batches_unshuffled_are_the_shards_from_the_start(job: Job) -> None:
    job = replace(job, data=replace(job.data, shuffle=False))
    shards = TokenShards(ensure_prepared(job).training[0])
    data = open_training_data(job, dp_rank=0, dp_degree=1)
    tokens = torch.cat([data.next_batch().tokens_BS.flatten() for _ in range(5)])
    assert tokens.tolist() == shards.read(0, 10 * SEQ_LEN).tolist()


def _stored_rows(shards: TokenShards) -> list[tuple[int, ...]]:
    """The inputs of every sample, in stored order."""
    starts = [shards.sample_start(i, SEQ_LEN) for i in range(shards.num_samples(SEQ_LEN))]
    return [tuple(shards.read(start, start + SEQ_LEN).tolist()) for start in starts]


def test_batches_of_one_epoch_hold_every_sample_once(job: Job) -> None:
    shards = TokenShards(ensure_prepared(job).training[0])
    num_samples = shards.num_samples(SEQ_LEN)
    stored = Counter(_stored_rows(shards))
    data = open_training_data(job, dp_rank=0, dp_degree=1)
    drawn = [row for _ in range(num_samples // 2) for row in data.next_batch().tokens_BS.tolist()]
    assert num_samples % 2 == 0 or stored.total() == len(drawn) + 1
    assert not Counter(map(tuple, drawn)) - stored
    assert [tuple(row) for row in drawn] != list(stored)[: len(drawn)]


@pytest.mark.parametrize("dp_degree", [2, 4])
def test_batches_over_ranks_are_those_of_one_rank(job: Job, dp_degree: int) -> None:
    num_samples = TokenShards(ensure_prepared(job).training[0]).num_samples(SEQ_LEN)
    count = num_samples // 8 + 20  # over the end of the first epoch
    assert _steps(_open(job, dp_degree), count) == _steps(_open(job, 1), count)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 1), (4, 2), (2, 2)])
def test_batches_resumed_at_other_degree_go_on_exactly(job: Job, before: int, after: int) -> None:
    expected = _steps(_open(job, 1), 12)
    ranks = _open(job, before)
    assert _steps(ranks, 7) == expected[:7]
    states = [rank.state_dict() for rank in ranks]
    assert all(state == states[0] for state in states)
    assert states[0]["position"] == 56
    assert _steps(_open(job, after, states[0]), 5) == expected[7:]


def test_batches_state_in_the_far_future_is_reached_at_once(job: Job) -> None:
    data = open_training_data(job, dp_rank=0, dp_degree=1)
    state = data.state_dict() | {"position": 8 * 10**12}
    data.load_state_dict(state)
    other = open_training_data(job, dp_rank=0, dp_degree=1)
    other.load_state_dict(state)
    assert _key(data.next_batch()) == _key(other.next_batch())
    assert data.state_dict()["position"] == 8 * 10**12 + 2


@pytest.mark.parametrize("change", ["seed", "seq_len", "shuffle", "sources", "weights"])
def test_batches_state_of_other_data_is_refused(job: Job, tmp_path: Path, change: str) -> None:
    state = open_training_data(job, dp_rank=0, dp_degree=1).state_dict()
    other = {
        "seed": replace(job, debug=replace(job.debug, seed=1)),
        "seq_len": replace(job, training=replace(job.training, seq_len=8)),
        "shuffle": replace(job, data=replace(job.data, shuffle=False)),
        "sources": replace(
            job,
            training=replace(
                job.training,
                dataset_path=str(write_jsonl(tmp_path / "b.jsonl", rows=60, seed=9)),
            ),
        ),
        "weights": replace(
            job,
            data=replace(
                job.data,
                sources=(DataSource(dataset="text", path=job.training.dataset_path, weight=2.0),),
            ),
        ),
    }[change]
    with pytest.raises(ConfigError) as raised:
        open_training_data(other, dp_rank=0, dp_degree=1).load_state_dict(state)
    assert len(raised.value.problems) == 1
    assert f"checkpoint: dataloader.{change}: the checkpoint was trained with" in str(raised.value)


def test_batches_same_text_elsewhere_resumes(job: Job, tmp_path: Path) -> None:
    state = open_training_data(job, dp_rank=0, dp_degree=1).state_dict()
    content = Path(job.training.dataset_path).read_text()
    (tmp_path / "copy.jsonl").write_text(content)
    moved = replace(job.training, dataset_path=str(tmp_path / "copy.jsonl"))
    open_training_data(replace(job, training=moved), dp_rank=0, dp_degree=1).load_state_dict(state)


@pytest.mark.parametrize("persistent", [False, True])
def test_batches_read_by_workers_are_the_same_and_resume(job: Job, persistent: bool) -> None:
    options = DataLoader(num_workers=2, persistent_workers=persistent, prefetch_factor=3)
    parallel = replace(job, training=replace(job.training, dataloader=options))
    expected = _steps(_open(job, 1), 6)
    ranks = _open(parallel, 2)
    assert _steps(ranks, 3) == expected[:3]
    assert ranks[0].state_dict()["position"] == 24  # consumed, not read ahead
    assert _steps(_open(parallel, 1, ranks[0].state_dict()), 3) == expected[3:]


def test_batches_of_a_mixture_meet_the_weights(job: Job, make_job, tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", rows=60, seed=1000 * i) for i in (1, 2)]
    weights = (3.0, 1.0)
    sources = tuple(
        DataSource(dataset="text", path=str(path), weight=weight)
        for path, weight in zip(paths, weights, strict=True)
    )
    data = Data(sources=sources, cache_dir=str(tmp_path / "cache"), num_proc=1)
    job = replace(job, data=data)
    first, second = (TokenShards(path) for path in ensure_prepared(job).training)
    rows_of_first, rows_of_second = {*_stored_rows(first)}, {*_stored_rows(second)}
    assert not rows_of_first & rows_of_second
    opened = open_training_data(job, dp_rank=0, dp_degree=1)
    drawn = [tuple(row) for _ in range(200) for row in opened.next_batch().tokens_BS.tolist()]
    assert sum(row in rows_of_first for row in drawn) == pytest.approx(300, abs=3)
    assert sum(row in rows_of_second for row in drawn) == pytest.approx(100, abs=3)


def _validating(job: Job, steps: int, **options) -> Job:
    settings = Validation(
        enable=True, dataset="text_validation", dataset_path=job.training.dataset_path,
        seq_len=8, local_batch_size=3, steps=steps, **options,
    )  # fmt: skip
    return replace(job, validation=settings)


def test_validation_all_full_batches_in_stored_order_each_time(job: Job) -> None:
    job = _validating(job, steps=-1)
    path = ensure_prepared(job).validation
    assert path is not None
    shards = TokenShards(path)
    ranks = [open_validation_data(job, dp_rank=r, dp_degree=2) for r in range(2)]
    batches = [list(rank) for rank in ranks]
    count = shards.num_samples(8) // 6
    assert [len(b) for b in batches] == [count, count]
    tokens = torch.cat([rank[i].tokens_BS.flatten() for i in range(count) for rank in batches])
    assert tokens.tolist() == shards.read(0, count * 48).tolist()
    again = [list(rank) for rank in ranks]
    assert [_key(b) for b in again[1]] == [_key(b) for b in batches[1]]


@pytest.mark.parametrize(
    ("steps", "dataloader"), [(3, DataLoader()), (3, DataLoader(num_workers=1))]
)
def test_validation_steps_limits_batches(job: Job, steps: int, dataloader: DataLoader) -> None:
    job = _validating(job, steps=steps, dataloader=dataloader)
    data = open_validation_data(job, dp_rank=0, dp_degree=1)
    assert [batch.tokens_BS.shape for batch in data] == [(3, 8)] * steps
    assert len(list(data)) == steps


def test_validation_more_steps_than_text_reads_all_once(job: Job) -> None:
    whole = list(open_validation_data(_validating(job, steps=-1), dp_rank=0, dp_degree=1))
    asked = list(open_validation_data(_validating(job, steps=10**6), dp_rank=0, dp_degree=1))
    assert len(asked) == len(whole) > 5


def test_validation_less_text_than_a_batch_is_config_error(job: Job, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("x")
    job = _validating(job, steps=-1)
    settings = replace(job.validation, dataset_path=str(tmp_path / "tiny.txt"))
    with pytest.raises(ConfigError, match=r"validation\.dataset: too little text: 3 tokens"):
        open_validation_data(replace(job, validation=settings), dp_rank=0, dp_degree=1)
