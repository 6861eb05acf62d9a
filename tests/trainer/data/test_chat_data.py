"""Conversations in batches: packed, masked, the same at any number of ranks, and their loss."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_corpora import VOCAB_SIZE, write_chat, write_tokenizer
from data_corpora import write_jsonl

from titan_recipes.config.job import Job
from titan_recipes.config.schema import Assets, Data, DataSource, Training, Validation
from titan_recipes.errors import ConfigError, DataError
from titan_recipes.trainer.data import prepare as prepare_module
from titan_recipes.trainer.data.chat import ChatFormat, Message
from titan_recipes.trainer.data.loader import Batch, open_training_data, open_validation_data
from titan_recipes.trainer.data.prepare import ensure_prepared
from titan_recipes.trainer.data.shards import TokenShards
from titan_recipes.trainer.data.tokenizer import load_tokenizer
from titan_recipes.trainer.loss import IGNORED

SEQ_LEN = 127


@pytest.fixture
def job(make_job, tmp_path: Path) -> Job:
    """A job on 80 conversations, some of them longer than a window; global batch of 8."""
    path = write_chat(tmp_path / "a.jsonl", rows=80, count=5)
    tokenizer = write_tokenizer(tmp_path / "tokenizer" / "tokenizer.json")
    made = make_job(
        training=Training(
            dataset="chat", dataset_path=str(path), seq_len=SEQ_LEN, local_batch_size=2
        ),
        assets=Assets(tokenizer=str(tokenizer)),
    )
    return replace(made, model=replace(made.model, vocab_size=VOCAB_SIZE))


def _shards(job: Job) -> TokenShards:
    return TokenShards(ensure_prepared(job).training[0])


def _rendered(job: Job) -> list[tuple[list[int], list[bool]]]:
    """Every conversation of the job's file as ids and marks, cut to a window."""
    format = ChatFormat(job.data.chat_template, load_tokenizer(Path(job.assets.tokenizer)))
    lines = Path(job.training.dataset_path).read_text().splitlines()
    made = [
        format.conversation(Message(**turn) for turn in json.loads(line)["messages"])
        for line in lines
    ]
    return [(ids[: SEQ_LEN + 1], trained[: SEQ_LEN + 1]) for ids, trained in made]


def _steps(job: Job, dp_degree: int, count: int, state=None) -> tuple[list, dict]:
    """The rows of each global batch of 8, and the state after them."""
    ranks = [open_training_data(job, dp_rank=r, dp_degree=dp_degree) for r in range(dp_degree)]
    for rank in ranks:
        if state is not None:
            rank.load_state_dict(state)
    steps = []
    for _ in range(count):
        rows: list[tuple[int, ...]] = []
        while len(rows) < 8:
            for batch in (rank.next_batch() for rank in ranks):
                assert batch.documents_BS is not None
                fields = [batch.tokens_BS, batch.labels_BS, batch.documents_BS]
                rows += map(tuple, torch.cat(fields, 1).tolist())
        steps.append(rows)
    return steps, ranks[0].state_dict()


@pytest.mark.parametrize("template", ["llama3", "chatml"])
def test_batches_hold_every_conversation_once_with_its_labels(job: Job, template: str) -> None:
    job = replace(job, data=replace(job.data, chat_template=template))
    job = replace(job, training=replace(job.training, local_batch_size=1))
    shards = _shards(job)
    data = open_training_data(job, dp_rank=0, dp_degree=1)
    found = []
    for _ in range(shards.num_samples(SEQ_LEN)):
        batch = data.next_batch()
        assert batch.documents_BS is not None
        tokens, labels, documents = (
            field[0] for field in (batch.tokens_BS, batch.labels_BS, batch.documents_BS)
        )
        for number in documents.unique():
            inside = documents == number
            found.append((tokens[inside].tolist(), labels[inside].tolist()))
    expected = []
    for ids, trained in _rendered(job):
        pairs = zip(ids[1:], trained[1:], strict=True)
        labels = [id if is_trained else IGNORED for id, is_trained in pairs]
        expected.append((ids[:-1], labels))
    cut = [(tokens[: len(e)], labels[: len(e)]) for tokens, labels in found for e in [tokens]]
    assert len(found) == len(expected) == shards.counts["conversations"] == 80
    # What follows a conversation's last label, up to the next or the end, trains on nothing.
    stripped = sorted(_without_tail(tokens, labels) for tokens, labels in cut)
    assert stripped == sorted(_without_tail(*pair) for pair in expected)
    assert 0 < shards.counts["cut"] < 20
    assert shards.counts["padding"] / shards.num_tokens < 0.1


def _without_tail(tokens: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    end = max(i for i, label in enumerate(labels) if label != IGNORED) + 1
    return tokens[:end], labels[:end]


@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 1), (4, 2)])
def test_order_is_the_same_and_resumes_at_any_number_of_ranks(
    job: Job, before: int, after: int
) -> None:
    epoch = _shards(job).num_samples(SEQ_LEN) // 8
    expected, _ = _steps(job, 1, epoch + 4)
    first, state = _steps(job, before, 3)
    assert first == expected[:3]
    assert _steps(job, after, epoch + 1, state)[0] == expected[3:]


def test_shards_are_the_same_with_many_processes_and_after_a_kill(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare_module, "MIN_GROUP_BYTES", 4096)
    whole = _shards(job)
    assert len(whole._num_tokens) > 2  # several shards, each packed by itself
    report = capfd.readouterr().err.splitlines()[-1]
    filled = 1 - whole.counts["padding"] / whole.num_tokens
    assert report == (
        f"chat: 80 conversations in {whole.num_samples(SEQ_LEN)} windows of 127 tokens, "
        f"{filled:.1%} filled; {whole.counts['cut']} were longer and lost their end"
    )

    # A killed run leaves finished shards: they and what was counted in them are taken over.
    partial = tmp_path / "again" / "tokens" / f"{whole.directory.name}.partial"
    partial.mkdir(parents=True)
    for name in ("00000.tokens", "00000.documents", "00000.counts", "00000.crc32"):
        (partial / name).write_bytes((whole.directory / name).read_bytes())
    again = _shards(replace(job, data=replace(job.data, cache_dir=str(tmp_path / "again"))))
    split = _shards(
        replace(job, data=replace(job.data, cache_dir=str(tmp_path / "split"), num_proc=2))
    )
    assert again.digest == split.digest == whole.digest
    assert again.counts == split.counts == whole.counts


def test_shards_depend_on_template_and_seq_len_but_text_does_not(job: Job, tmp_path: Path) -> None:
    chatml = replace(job, data=replace(job.data, chat_template="chatml"))
    short = replace(job, training=replace(job.training, seq_len=63))
    assert len({_shards(j).directory for j in (job, chatml, short)}) == 3
    text = write_jsonl(tmp_path / "text.jsonl", rows=40)
    training = replace(job.training, dataset="text", dataset_path=str(text), seq_len=31)
    plain = replace(job, training=training)
    other = replace(chatml, training=replace(training, seq_len=63))
    assert _shards(plain).directory == _shards(other).directory


def test_mixture_of_text_and_conversations_trains_on_all_of_the_text(
    job: Job, tmp_path: Path
) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", rows=60)
    sources = (
        DataSource(dataset="chat", path=job.training.dataset_path),
        DataSource(dataset="text", path=str(text)),
    )
    job = replace(job, data=Data(sources=sources, cache_dir=str(tmp_path / "c"), num_proc=1))
    data = open_training_data(job, dp_rank=0, dp_degree=1)
    rows = [
        (labels, documents)
        for _ in range(20)
        for batch in [data.next_batch()]
        for labels, documents in zip(batch.labels_BS, batch.documents_BS, strict=True)  # type: ignore[arg-type]
    ]
    whole = [(labels != IGNORED).all().item() for labels, _ in rows]
    assert 15 <= sum(whole) <= 25
    assert all((documents == 0).all() == w for (_, documents), w in zip(rows, whole, strict=True))


def test_document_mask_numbers_the_documents_of_text(job: Job, tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", rows=60, count=8)
    training = replace(job.training, dataset="text", dataset_path=str(text))
    job = replace(job, training=training)
    assert open_training_data(job, dp_rank=0, dp_degree=1).next_batch().documents_BS is None
    masked = replace(job, data=replace(job.data, document_mask=True, shuffle=False))
    shards = _shards(masked)
    batch = open_training_data(masked, dp_rank=0, dp_degree=1).next_batch()
    assert batch.documents_BS is not None
    for row in range(2):
        starts = shards.document_starts(row * SEQ_LEN, (row + 1) * SEQ_LEN) - row * SEQ_LEN
        expected = np.searchsorted(starts, np.arange(SEQ_LEN), side="right")
        assert batch.documents_BS[row].tolist() == expected.tolist()
        assert len(starts) > 0
    assert (batch.labels_BS != IGNORED).all()


def test_validation_reads_conversations_in_windows_of_its_own(job: Job, tmp_path: Path) -> None:
    held_out = write_chat(tmp_path / "held_out.jsonl", rows=30, seed=500)
    settings = Validation(
        enable=True, dataset="chat_validation", dataset_path=str(held_out),
        seq_len=80, local_batch_size=2,
    )  # fmt: skip
    job = replace(job, validation=settings)
    batches = list(open_validation_data(job, dp_rank=0, dp_degree=1))
    path = ensure_prepared(job).validation
    assert path is not None
    assert len(batches) == TokenShards(path).num_samples(80) // 2 > 3
    assert all(batch.tokens_BS.shape == (2, 80) for batch in batches)
    assert all(batch.documents_BS is not None for batch in batches)


def test_loss_of_packed_conversations_is_that_of_each_alone(job: Job) -> None:
    from titan_recipes.trainer.loss import HeadLoss
    from titan_recipes.trainer.model.decoder import Decoder
    from titan_recipes.trainer.model.init import init_weights

    model = Decoder(job.model, SEQ_LEN)
    init_weights(model, seed=0)
    assert model.output is not None
    model.output.loss = HeadLoss()

    def summed_loss(batch: Batch) -> torch.Tensor:
        return model(batch.tokens_BS, batch.documents_BS, batch.labels_BS)

    data = open_training_data(job, dp_rank=0, dp_degree=1)
    num_batches = _shards(job).num_samples(SEQ_LEN) // 2
    with torch.no_grad():
        batches = [data.next_batch() for _ in range(num_batches + 1)]
        packed = torch.stack([summed_loss(batch) for batch in batches[:4]]).sum()
        alone = torch.zeros(())
        count = 0
        for batch in batches[:4]:
            assert batch.documents_BS is not None
            for tokens, labels, documents in zip(
                batch.tokens_BS, batch.labels_BS, batch.documents_BS, strict=True
            ):
                for number in documents.unique():
                    inside = documents == number
                    alone += summed_loss(Batch(tokens[inside][None], labels[inside][None]))
                    count += 1
    assert count > 12
    assert packed.item() == pytest.approx(alone.item(), rel=1e-5)


def test_too_few_conversations_for_a_batch_is_config_error(job: Job, tmp_path: Path) -> None:
    path = write_chat(tmp_path / "few.jsonl", rows=4)
    job = replace(job, training=replace(job.training, dataset_path=str(path)))
    with pytest.raises(ConfigError, match=r"too little text: 4 conversations of chat = \d x 127"):
        ensure_prepared(job)


def test_wrong_row_is_data_error_with_its_line(job: Job) -> None:
    with Path(job.training.dataset_path).open("a") as file:
        file.write('{"text": "x"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:81: no list of turns under 'messages'"):
        ensure_prepared(job)


def test_plain_text_is_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("hello")
    settings = replace(job.training, dataset_path=str(tmp_path / "b.txt"))
    with pytest.raises(
        ConfigError, match=r"no rows in .*b\.txt, only text; give a file, a directory"
    ):
        ensure_prepared(replace(job, training=settings))
