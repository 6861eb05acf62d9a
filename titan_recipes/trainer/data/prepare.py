"""Prepare: text is tokenized once into shards, keyed by the text and the tokenizer.

    <cache>/tokens/<dataset>-<key>           finished (shards.py); its key covers all it depends on
    <cache>/tokens/<dataset>-<key>.partial   shards of a run that goes on or was killed
    <cache>/tokens/<dataset>-<key>.lock      held by the process that tokenizes; others wait for it

The source's files are cut into groups whose borders depend on nothing but the files, and each
group becomes one shard. So the result is the same with any number of processes, a shard that is
finished stays when the rest is killed, and the next call goes on from there. Conversations are
packed into windows on the way, within their shard (chat.py).
"""

import fcntl
import hashlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_sentinel
from pathlib import Path
from typing import Any

import numpy as np

from titan_recipes.config.datasets import is_chat
from titan_recipes.config.job import Job
from titan_recipes.config.schema import DataSource
from titan_recipes.errors import ConfigError, Problem
from titan_recipes.trainer.data import documents, shards
from titan_recipes.trainer.data.chat import ChatFormat, ConversationPacker, Document, packing_report
from titan_recipes.trainer.data.places import bundle_directory, cache_directory
from titan_recipes.trainer.data.progress import Progress
from titan_recipes.trainer.data.sources import Source, open_source
from titan_recipes.trainer.data.tokenizer import Tokenizer, load_job_tokenizer, load_tokenizer

MAX_SHARDS = 128
"""Bounds the open files of a training process and the index; a larger source has larger shards."""
MIN_GROUP_BYTES = 2**20
PACKED_VERSION = 1
"""Raised when the same conversations would become other windows."""
_REPORT_DOCUMENTS = 64


@dataclass(frozen=True, slots=True)
class Prepared:
    """The shards of every source that a job reads; validation: None where it is off."""

    training: tuple[Path, ...]
    validation: Path | None


@dataclass(frozen=True, slots=True)
class Packing:
    """How conversations become windows."""

    template: str
    seq_len: int

    @property
    def window(self) -> int:
        """Tokens of a window: the last is a label only."""
        return self.seq_len + 1


@dataclass(frozen=True, slots=True)
class _Work:
    """What a process needs to tokenize any group of a source."""

    tokenizer_path: Path
    text_key: str
    partial: Path
    packing: Packing | None
    groups: tuple[tuple[documents.Chunk, ...], ...]


def training_sources(job: Job) -> tuple[DataSource, ...]:
    """The mixture that the job trains on; one source where [[data.sources]] is not used."""
    single = DataSource(dataset=job.training.dataset, path=job.training.dataset_path)
    return job.data.sources or (single,)


def ensure_prepared(job: Job) -> Prepared:
    """Tokenize what the job reads, unless that was done before.

    Every rank may call it at once; one works, the others wait. It needs no process group. Raises
    DataError, and ConfigError, also where the text is less than a global batch.
    """
    tokenizer = load_job_tokenizer(job)
    training: list[Path] = []
    if not job.data.streaming:
        for number, asked in enumerate(training_sources(job)):
            key = f"data.sources.{number}" if job.data.sources else "training"
            training.append(_prepare_for(job, asked, key, tokenizer, job.training.seq_len))
        _check_enough(training, job.training.seq_len, job.derived.global_batch_size, "training")
    validation = None
    if job.validation.enable:
        asked = DataSource(dataset=job.validation.dataset, path=job.validation.dataset_path)
        validation = _prepare_for(job, asked, "validation", tokenizer, job.validation.seq_len)
        batch = job.dp_degree * job.validation.local_batch_size
        _check_enough([validation], job.validation.seq_len, batch, "validation")
    return Prepared(tuple(training), validation)


def _check_enough(paths: Sequence[Path], seq_len: int, needed: int, key: str) -> None:
    """Raise ConfigError where the sources hold fewer samples than one batch over all ranks."""
    opened = [shards.TokenShards(path) for path in paths]
    counts = [source.num_samples(seq_len) for source in opened]
    if sum(counts) >= needed and all(counts):
        return
    held = " + ".join(
        (
            f"{source.num_documents:,} conversations of"
            if source.window
            else f"{source.num_tokens:,} tokens of"
        )
        + f" {source.about['dataset']} = {count:,} x {seq_len:,} + 1"
        for source, count in zip(opened, counts, strict=True)
    )
    got = f"too little text: {held}, one batch over all ranks is {needed:,} x {seq_len:,} + 1"
    cure = "use more text, a shorter seq_len or a smaller batch; every source needs a sequence"
    raise ConfigError([Problem("train.toml", f"{key}.dataset", got, cure)])


def _prepare_for(job: Job, asked: DataSource, key: str, tokenizer: Tokenizer, seq_len: int) -> Path:
    source = open_source(asked, key=key, text_key=job.data.text_key, bundle=bundle_directory(job))
    packing = Packing(job.data.chat_template, seq_len) if is_chat(asked.dataset) else None
    place, processes = cache_directory(job), job.data.num_proc
    return prepare(source, tokenizer, cache=place, num_proc=processes, packing=packing)


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    *,
    cache: Path,
    num_proc: int = -1,
    packing: Packing | None = None,
) -> Path:
    """Tokenize one source; returns the directory of its shards, at once if it is there already.

    num_proc: processes that tokenize; -1 = one for each core. packing: for conversations. Raises
    DataError for text that can't be read, ConfigError where the cache can't be written or the
    tokenizer doesn't know the chat template.
    """
    if packing is not None:
        ChatFormat(packing.template, tokenizer)
    final = cache / "tokens" / f"{source.dataset}-{_key(source, tokenizer, packing)}"
    if final.is_dir():
        return final
    with _locked(final.with_name(f"{final.name}.lock")):
        if not final.is_dir():
            _tokenize(source, tokenizer, final, num_proc, packing)
    return final


def _key(source: Source, tokenizer: Tokenizer, packing: Packing | None) -> str:
    parts: tuple[object, ...] = (
        shards.FORMAT_VERSION,
        MAX_SHARDS,
        MIN_GROUP_BYTES,
        tokenizer.kind,
        tokenizer.fingerprint,
        tokenizer.bos_id,
        tokenizer.eos_id,
        source.identity(),
    )
    if packing is not None:
        parts += (PACKED_VERSION, packing.template, packing.seq_len)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold the lock file; the kernel lets it go when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process to tokenize {path.stem}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        got = f"{path.parent} can't be used for token shards: {error}"
        cure = "set it to a place with room and locks"
        raise ConfigError([Problem("train.toml", "data.cache_dir", got, cure)]) from error
    with file:
        yield


def _groups(source: Source) -> list[tuple[documents.Chunk, ...]]:
    """Chunks of consecutive text, in groups of about the same size: one shard each."""
    target = max(MIN_GROUP_BYTES, -(-source.num_bytes // MAX_SHARDS))
    groups: list[tuple[documents.Chunk, ...]] = []
    group: list[documents.Chunk] = []
    for file in source.files:
        for chunk in documents.chunks(file, target):
            group.append(chunk)
            if sum(part.size for part in group) >= target:
                groups.append(tuple(group))
                group = []
    return [*groups, tuple(group)] if group else groups


def _tokenize(
    source: Source, tokenizer: Tokenizer, final: Path, num_proc: int, packing: Packing | None
) -> None:
    partial = final.with_name(f"{final.name}.partial")
    partial.mkdir(exist_ok=True)
    groups = _groups(source)
    work = _Work(tokenizer.path, source.text_key, partial, packing, tuple(groups))
    todo = [number for number in range(len(groups)) if not shards.is_finished(partial, number)]
    num_proc = len(os.sched_getaffinity(0)) if num_proc == -1 else num_proc
    size = sum(chunk.size for number in todo for chunk in groups[number])
    with Progress(source.dataset, num_bytes=size) as progress:
        if min(num_proc, len(todo)) <= 1:
            for number in todo:
                _tokenize_group(number, work, tokenizer, progress.add)
        else:
            _in_processes(todo, work, min(num_proc, len(todo)), progress)
    dtype = _dtype(tokenizer, packing)
    about = {
        "dataset": source.dataset,
        "num_files": len(source.files),
        "num_bytes": source.num_bytes,
        "text_key": source.text_key,
        "tokenizer": tokenizer.fingerprint,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
    }
    window = packing.window if packing is not None else 0
    shards.commit(partial, final, len(groups), dtype, about, window=window)
    if packing is not None:
        print(f"{source.dataset}: {packing_report(shards.TokenShards(final))}", file=sys.stderr)


def _dtype(tokenizer: Tokenizer, packing: Packing | None) -> np.dtype:
    choose = shards.token_dtype if packing is None else shards.marked_dtype
    return choose(tokenizer.vocab_size)


class _Texts:
    """Documents of text: [bos] ids [eos]."""

    def __init__(self, tokenizer: Tokenizer, text_key: str) -> None:
        self.counts: dict[str, int] = {}
        self._tokenizer = tokenizer
        self._text_key = text_key

    def documents(self, chunk: documents.Chunk) -> Iterator[Document]:
        for text in documents.read(chunk, self._text_key):
            pieces = [ids for ids in self._tokenizer.encode_pieces(text) if ids]
            if pieces:
                yield [self._tokenizer.before, *pieces, self._tokenizer.after]

    def rest(self) -> Iterator[Document]:
        yield from ()


def _tokenize_group(number: int, work: _Work, tokenizer: Tokenizer, report: Any) -> None:
    """Write one shard. report(bytes, tokens) is called now and then with what was done since."""
    dtype = _dtype(tokenizer, work.packing)
    if work.packing is None:
        made = _Texts(tokenizer, work.text_key)
    else:
        made = ConversationPacker(
            ChatFormat(work.packing.template, tokenizer),
            window=work.packing.window,
            mark=shards.trained_mark(dtype),
        )
    with shards.ShardWriter(work.partial, number, dtype) as writer:
        for chunk in work.groups[number]:
            reported = writer.num_tokens
            for count, document in enumerate(made.documents(chunk)):
                writer.add(document)
                if count % _REPORT_DOCUMENTS == 0:
                    report(0, writer.num_tokens - reported)
                    reported = writer.num_tokens
            report(chunk.size, writer.num_tokens - reported)
        for document in made.rest():
            writer.add(document)
        writer.counts = dict(made.counts)


# In a worker process: the work, set once by _start_worker.
_worker: tuple[_Work, Tokenizer, Any] | None = None


def _start_worker(work: _Work, done: Any) -> None:
    global _worker
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        # A pool's workers hold both ends of its queue, so a killed parent would leave them waiting.
        wait_for_sentinel([parent.sentinel])
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()

    def report(num_bytes: int, num_tokens: int) -> None:
        with done.get_lock():
            done[0] += num_bytes
            done[1] += num_tokens

    _worker = (work, load_tokenizer(work.tokenizer_path), report)


def _run_in_worker(number: int) -> None:
    assert _worker is not None
    _tokenize_group(number, *_worker)


def _in_processes(todo: list[int], work: _Work, num_proc: int, progress: Progress) -> None:
    """Share the groups among processes; the first failure ends them all."""
    # Not fork: the caller may be a trainer with threads of torch's.
    context = multiprocessing.get_context("spawn")
    done = context.Array("q", 2)
    with ProcessPoolExecutor(num_proc, context, _start_worker, (work, done)) as pool:
        futures = [pool.submit(_run_in_worker, number) for number in todo]
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                progress.update(done[0], done[1])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
