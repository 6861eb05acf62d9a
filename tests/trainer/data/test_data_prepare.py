"""Prepare gives the same shards however it is run, interrupted or repeated."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from data_corpora import DEMO_TOKENIZER, demo_tokenizer, words, write_jsonl

from titan_recipes.config.job import encode
from titan_recipes.config.schema import Data, DataSource, Training, Validation
from titan_recipes.errors import ConfigError, DataError
from titan_recipes.trainer.data import prepare as prepare_module
from titan_recipes.trainer.data.prepare import ensure_prepared, prepare
from titan_recipes.trainer.data.shards import TokenShards
from titan_recipes.trainer.data.sources import Source, open_source

SCRIPT = """
import sys
from pathlib import Path
from titan_recipes.config.schema import DataSource
from titan_recipes.trainer.data import prepare
from titan_recipes.trainer.data.sources import open_source
from titan_recipes.trainer.data.tokenizer import load_tokenizer

if __name__ == "__main__":
    assert "torch" not in sys.modules
    text, tokenizer, cache, num_proc, group = sys.argv[1:]
    prepare.MIN_GROUP_BYTES = int(group)
    asked = DataSource(dataset="text", path=text)
    source = open_source(asked, key="training", text_key="text", bundle=Path("/none"))
    made = load_tokenizer(Path(tokenizer))
    print(prepare.prepare(source, made, cache=Path(cache), num_proc=int(num_proc)))
"""


def _source(path: Path) -> Source:
    asked = DataSource(dataset="text", path=str(path))
    return open_source(asked, key="training", text_key="text", bundle=Path("/none"))


def _start(
    directory: Path, text: Path, cache: Path, *, num_proc: int, group: int
) -> subprocess.Popen[str]:
    """A real process that prepares `text`; its own file, so that its workers can import it."""
    script = directory / "prepare_one.py"
    script.write_text(SCRIPT)
    arguments = [str(text), str(DEMO_TOKENIZER), str(cache), str(num_proc), str(group)]
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_prepare_tokens_are_documents_between_bos_and_eos(tmp_path: Path) -> None:
    texts = [words(seed, 40) for seed in range(5)]
    directory = tmp_path / "corpus"
    directory.mkdir()
    for i, text in enumerate(texts):
        (directory / f"{i}.txt").write_text(text)
    (directory / "empty.txt").write_text("")
    tokenizer = demo_tokenizer()
    path = prepare(_source(directory), tokenizer, cache=tmp_path / "cache", num_proc=1)
    assert path.parent == tmp_path / "cache" / "tokens"
    shards = TokenShards(path)
    documents = [[2046, *tokenizer.encode(text), 2047] for text in texts]
    assert shards.read(0, shards.num_tokens).tolist() == [id for ids in documents for id in ids]
    starts = [sum(map(len, documents[:i])) for i in range(5)]
    assert shards.document_starts(0, shards.num_tokens).tolist() == starts
    assert shards.about["num_files"] == 6


def test_prepare_any_number_of_processes_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "MIN_GROUP_BYTES", 20_000)
    source = _source(write_jsonl(tmp_path / "a.jsonl", rows=1000))
    results = [
        prepare(source, demo_tokenizer(), cache=tmp_path / str(n), num_proc=n) for n in (1, 3)
    ]
    one, three = map(_content, results)
    assert len(one) == 3 * 9 + 1
    assert one == three
    assert results[0].name == results[1].name


def test_prepare_again_returns_at_once_and_changes_nothing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows=20)
    first = prepare(_source(path), demo_tokenizer(), cache=tmp_path, num_proc=1)
    before = {file: file.stat().st_mtime_ns for file in first.iterdir()}
    assert prepare(_source(path), demo_tokenizer(), cache=tmp_path, num_proc=1) == first
    assert {file: file.stat().st_mtime_ns for file in first.iterdir()} == before


def test_prepare_other_text_tokenizer_or_key_is_other_directory(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows=20)
    tokenizer = demo_tokenizer()
    no_bos = replace(tokenizer, bos_id=None)
    other = write_jsonl(tmp_path / "b.jsonl", rows=20)
    keyed = replace(_source(path), text_key="text ")
    made = {
        prepare(_source(path), tokenizer, cache=tmp_path, num_proc=1),
        prepare(_source(path), no_bos, cache=tmp_path, num_proc=1),
        prepare(_source(other), tokenizer, cache=tmp_path, num_proc=1),
    }
    assert len(made) == 3
    with pytest.raises(DataError, match="no text under 'text '"):
        prepare(keyed, tokenizer, cache=tmp_path, num_proc=1)


def _wait_until(condition, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.005)


def _children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def test_prepare_killed_midway_keeps_finished_shards_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_jsonl(tmp_path / "a.jsonl", rows=12_000)
    group = 16_000
    cache = tmp_path / "killed"
    process = _start(tmp_path, text, cache, num_proc=2, group=group)

    def finished() -> list[Path]:
        return sorted(cache.glob("tokens/*.partial/*.crc32"))

    _wait_until(lambda: len(finished()) >= 3 or process.poll() is not None, "three shards")
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert workers
    try:
        _wait_until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers end", 20
        )
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=20)
    kept = {path: path.stat().st_mtime_ns for path in finished()}
    (partial,) = cache.glob("tokens/*.partial")
    monkeypatch.setattr(prepare_module, "MIN_GROUP_BYTES", group)
    fresh = prepare(_source(text), demo_tokenizer(), cache=tmp_path / "fresh", num_proc=1)
    assert 3 <= len(kept) < len(list(fresh.glob("*.crc32")))

    resumed = prepare(_source(text), demo_tokenizer(), cache=cache, num_proc=1)
    assert not partial.exists()
    assert {resumed / path.name: time for path, time in kept.items()}.items() <= {
        path: path.stat().st_mtime_ns for path in resumed.iterdir()
    }.items()
    assert _content(resumed) == _content(fresh)


def test_prepare_concurrent_callers_share_one_result(tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "a.jsonl", rows=3000)
    callers = [_start(tmp_path, text, tmp_path / "c", num_proc=1, group=10_000) for _ in range(3)]
    outputs = [caller.communicate(timeout=120) for caller in callers]
    assert [caller.returncode for caller in callers] == [0, 0, 0]
    assert len({out for out, _ in outputs}) == 1
    assert sum(err.count("tokenized text") for _, err in outputs) == 1
    assert len([p for p in (tmp_path / "c" / "tokens").iterdir() if p.is_dir()]) == 1


def test_prepare_bad_row_in_a_worker_is_data_error_and_resumes_once_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "MIN_GROUP_BYTES", 20_000)
    path = write_jsonl(tmp_path / "a.jsonl", rows=800)
    good = path.read_text()
    lines = good.splitlines()
    lines[700] = "oops"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a\.jsonl:701: not a JSON object"):
        prepare(_source(path), demo_tokenizer(), cache=tmp_path / "c", num_proc=2)
    assert not [p for p in (tmp_path / "c" / "tokens").iterdir() if p.suffix == ""]
    assert multiprocessing.active_children() == []
    path.write_text(good)
    assert TokenShards(
        prepare(_source(path), demo_tokenizer(), cache=tmp_path / "c", num_proc=1)
    ).num_documents == 800  # fmt: skip


def test_prepare_unusable_cache_is_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = write_jsonl(tmp_path / "a.jsonl", rows=2)
    with pytest.raises(ConfigError, match=r"data\.cache_dir: .*file/tokens can't be used"):
        prepare(_source(path), demo_tokenizer(), cache=tmp_path / "file", num_proc=1)


def test_ensure_prepared_too_little_text_is_config_error_with_arithmetic(
    make_job, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("x")
    job = make_job(
        training=Training(dataset="text", dataset_path=str(tmp_path / "a.txt"), seq_len=16)
    )
    with pytest.raises(ConfigError) as raised:
        ensure_prepared(job)
    assert (
        "train.toml: training.dataset: too little text: 3 tokens of text = 0 x 16 + 1, one batch"
        " over all ranks is 8 x 16 + 1; use more text"
    ) in str(raised.value)


def test_ensure_prepared_mixture_and_validation_are_all_prepared(make_job, tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", rows=50)
    second = write_jsonl(tmp_path / "b.jsonl", rows=50, seed=1000)
    sources = tuple(DataSource(dataset="text", path=str(path)) for path in (first, second))
    job = make_job(
        data=Data(sources=sources, cache_dir=str(tmp_path / "c"), num_proc=1),
        validation=Validation(
            enable=True, dataset="text_validation", dataset_path=str(second), seq_len=16
        ),
    )
    prepared = ensure_prepared(job)
    assert len(prepared.training) == 2
    assert prepared.validation not in (None, *prepared.training)
    assert [TokenShards(path).num_documents for path in prepared.training] == [50, 50]


def _command(job) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "titan_recipes.trainer.data", "prepare", "--job", encode(job)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)


def test_command_prints_table_and_exits_by_error(make_job, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows=50)
    training = Training(dataset="text", dataset_path=str(path), seq_len=16)
    done = _command(make_job(training=training))
    assert (done.returncode, done.stderr.count("tokenized text: ")) == (0, 1)
    header, row = done.stdout.splitlines()
    assert header.split() == ["dataset", "files", "documents", "tokens", "MB", "where"]
    dataset, files, documents, tokens, megabytes, where = row.split()
    shards = TokenShards(Path(where))
    assert (dataset, files, documents) == ("text", "1", "50")
    assert (tokens, megabytes) == (f"{shards.num_tokens:,}", "0.0")

    path.write_text("oops\n")
    done = _command(make_job(training=training))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: {path}:1: not a JSON object")

    done = _command(make_job(training=Training(dataset="stdlb")))
    assert done.returncode == 2
    assert done.stderr.startswith('error: train.toml: training.dataset: no dataset "stdlb"')
