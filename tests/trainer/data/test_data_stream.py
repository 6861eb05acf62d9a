"""Streaming: rows of a hub dataset, tokenized on the fly, resume exactly at the same degree."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from data_corpora import demo_tokenizer, write_jsonl

from titan_recipes.config.job import Job
from titan_recipes.config.schema import Data, DataSource, Training
from titan_recipes.errors import ConfigError, DataError
from titan_recipes.trainer.data.loader import open_training_data

SEQ_LEN = 16
ROWS = 12


@pytest.fixture
def job(make_job, tmp_path: Path) -> Job:
    """A stream over two local files of 12 rows."""
    for i in range(2):
        write_jsonl(tmp_path / "rows" / f"train-{i}.jsonl", rows=ROWS, seed=100 * i)
    training = Training(
        dataset="hub", dataset_path=str(tmp_path / "rows"), seq_len=SEQ_LEN, local_batch_size=2
    )
    return make_job(data=Data(streaming=True), training=training)


def _file_tokens(job: Job, file: int) -> list[int]:
    path = Path(job.training.dataset_path) / f"train-{file}.jsonl"
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    tokenizer = demo_tokenizer()
    return [id for text in texts for id in (2046, *tokenizer.encode(text), 2047)]


def _tokens(data, count: int) -> list[int]:
    return [id for _ in range(count) for id in data.next_batch().tokens_BS.flatten().tolist()]


def test_stream_tokens_are_the_rows_in_order(job: Job) -> None:
    data = open_training_data(job, dp_rank=0, dp_degree=1)
    rows = _file_tokens(job, 0) + _file_tokens(job, 1)
    batch = data.next_batch()
    assert batch.tokens_BS.flatten().tolist() == rows[:32]
    assert batch.labels_BS.flatten().tolist() == rows[1:33]
    assert _tokens(data, len(rows) // 32 - 1) == rows[32 : len(rows) // 32 * 32]


def test_stream_ranks_read_different_rows(job: Job) -> None:
    ranks = [open_training_data(job, dp_rank=r, dp_degree=2) for r in range(2)]
    for file, rank in enumerate(ranks):
        rows = _file_tokens(job, file)
        assert _tokens(rank, 5) == rows[: 5 * 32]


@pytest.mark.parametrize("dp_degree", [1, 2, 3])
@pytest.mark.parametrize("before", [0, 1, 7, 80])
def test_stream_resumed_goes_on_exactly_also_in_later_epochs(
    job: Job, dp_degree: int, before: int
) -> None:
    rank = dp_degree - 1
    whole = open_training_data(job, dp_rank=rank, dp_degree=dp_degree)
    expected = _tokens(whole, before + 60)
    data = open_training_data(job, dp_rank=rank, dp_degree=dp_degree)
    assert _tokens(data, before) == expected[: before * 32]
    state = json.loads(json.dumps(data.state_dict()))
    resumed = open_training_data(job, dp_rank=rank, dp_degree=dp_degree)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert _tokens(resumed, 60) == expected[before * 32 :]


def test_stream_states_of_ranks_have_own_keys(job: Job) -> None:
    states = [open_training_data(job, dp_rank=r, dp_degree=2).state_dict() for r in range(2)]
    assert [[key for key in state if key.startswith("dp_rank")] for state in states] == [
        ["dp_rank_0"], ["dp_rank_1"],
    ]  # fmt: skip


def test_stream_resumed_at_other_degree_is_refused(job: Job) -> None:
    state = open_training_data(job, dp_rank=0, dp_degree=1).state_dict()
    with pytest.raises(ConfigError, match="it was saved at: 1, this job has 2; resume with as"):
        open_training_data(job, dp_rank=0, dp_degree=2).load_state_dict(state)


def test_stream_state_of_shards_is_refused(job: Job) -> None:
    data = open_training_data(job, dp_rank=0, dp_degree=1)
    with pytest.raises(ConfigError, match=r"dataloader\.stream: the checkpoint was trained with"):
        data.load_state_dict({"position": 8, "seq_len": SEQ_LEN, "seed": 0})


def test_stream_row_without_text_is_data_error(job: Job) -> None:
    job = replace(job, data=replace(job.data, text_key="body"))
    data = open_training_data(job, dp_rank=0, dp_degree=1)
    with pytest.raises(DataError, match="no text under 'body', its keys are 'text'; set data"):
        data.next_batch()


def test_stream_without_text_is_data_error_instead_of_endless(job: Job) -> None:
    for path in Path(job.training.dataset_path).iterdir():
        path.write_text('{"text": ""}\n')
    data = open_training_data(job, dp_rank=0, dp_degree=1)
    with pytest.raises(DataError, match="this rank's part of the stream holds no text"):
        data.next_batch()


def test_stream_other_than_hub_is_config_error(job: Job) -> None:
    stdlib = replace(job, training=Training(dataset="stdlib"))
    with pytest.raises(ConfigError, match="dataset 'stdlib' can't be streamed"):
        open_training_data(stdlib, dp_rank=0, dp_degree=1)
    mixture = replace(job, data=replace(job.data, sources=(DataSource(dataset="hub"),)))
    with pytest.raises(ConfigError, match=r"\[\[data\.sources\]\] can't be streamed"):
        open_training_data(mixture, dp_rank=0, dp_degree=1)
