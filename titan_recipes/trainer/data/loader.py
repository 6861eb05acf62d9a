"""Loader: batches of one data-parallel rank, out of shards and an order.

The only state is the position: samples that all ranks together have taken. With L = local batch
size, rank r takes the samples [position + r * L, position + (r + 1) * L), then the position
grows by dp_degree * L. So the samples of a global batch are the same at any number of ranks.
"""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from titan_recipes.config.job import Job
from titan_recipes.config.schema import DataLoader as DataLoaderOptions
from titan_recipes.errors import ConfigError, Problem
from titan_recipes.trainer.data.order import SampleOrder
from titan_recipes.trainer.data.prepare import Prepared, ensure_prepared, training_sources
from titan_recipes.trainer.data.shards import TokenShards
from titan_recipes.trainer.loss import IGNORED


# B batch, S sequence
@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch, all int64.

    labels_BS: the token at s + 1, or IGNORED where it is not trained on. documents_BS: number of
    each token's document within its row; None = a row is one document.
    """

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    documents_BS: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory it travels while the caller goes on."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The batch in page-locked memory."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        documents_BS = None if self.documents_BS is None else change(self.documents_BS)
        return Batch(change(self.tokens_BS), change(self.labels_BS), documents_BS)


class TrainingData(Protocol):
    """What the trainer reads from."""

    def next_batch(self) -> Batch:
        """The next micro-batch of this rank; never ends."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises ConfigError where it belongs to other data."""
        ...

    def close(self) -> None:
        """End the processes that read, if any; only `load_state_dict` begins again."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class _Windows(Dataset[tuple[torch.Tensor, ...]]):
    """Map-style: the micro-batch that begins at a sample index, as Batch's fields."""

    sources: list[TokenShards]
    order: SampleOrder
    seq_len: int
    batch_size: int
    document_mask: bool
    """Whether text is masked by document, too; conversations always are."""

    def __getitem__(self, start: int) -> tuple[torch.Tensor, ...]:
        shape = (self.batch_size, self.seq_len)
        tokens_BS, labels_BS = np.empty(shape, np.int64), np.empty(shape, np.int64)
        documents_BS = np.zeros(shape, np.int64)
        for row in range(self.batch_size):
            number, sample = self.order.locate(start + row)
            source = self.sources[number]
            first = source.sample_start(sample, self.seq_len)
            end = first + self.seq_len
            window = source.read(first, end + 1)
            tokens_BS[row], labels_BS[row] = window[:-1], window[1:]
            labels_BS[row][~source.is_trained(first + 1, end + 1)] = IGNORED
            if source.window or self.document_mask:
                documents_BS[row][source.document_starts(first, end) - first] = 1
        fields = [tokens_BS, labels_BS]
        if self.document_mask or any(source.window for source in self.sources):
            fields.append(documents_BS.cumsum(axis=1))
        return tuple(torch.from_numpy(field) for field in fields)


def _batches(
    windows: _Windows, starts: Iterable[int], options: DataLoaderOptions
) -> Generator[Batch]:
    """The micro-batches that begin at these sample indices."""
    workers: dict[str, Any] = {}
    if options.num_workers:
        workers["persistent_workers"] = options.persistent_workers
        workers["prefetch_factor"] = (
            None if options.prefetch_factor < 0 else options.prefetch_factor
        )
    loader = DataLoader(
        windows,
        batch_size=None,
        sampler=starts,
        num_workers=options.num_workers,
        # A generator of its own: the default draws a seed from torch's global one at each start.
        generator=torch.Generator(),
        pin_memory=options.pin_memory and torch.accelerator.is_available(),
        **workers,
    )
    for fields in loader:
        yield Batch(*fields)


@dataclass(kw_only=True)
class ShardedData:
    """Training data out of token shards: exact and O(1) to resume at any number of ranks."""

    windows: _Windows
    dp_rank: int
    dp_degree: int
    options: DataLoaderOptions
    identity: dict[str, Any]
    """What a state must have been saved with."""

    def __post_init__(self) -> None:
        self._offset = self.dp_rank * self.windows.batch_size
        self._stride = self.dp_degree * self.windows.batch_size
        self._move(0)

    def _move(self, position: int) -> None:
        self._position = position
        starts = itertools.count(position + self._offset, self._stride)
        self._iterator = _batches(self.windows, starts, self.options)

    def next_batch(self) -> Batch:
        batch = next(self._iterator)
        self._position += self._stride
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position, **self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        refuse_other_data(self.identity, state)
        self._move(state["position"])

    def close(self) -> None:
        self._iterator.close()


def refuse_other_data(expected: dict[str, Any], state: dict[str, Any]) -> None:
    """Raise ConfigError unless the state was saved with the data described by `expected`."""
    problems = [
        Problem(
            "checkpoint",
            f"dataloader.{key}",
            f"the checkpoint was trained with {state.get(key)!r}, this job has {value!r}",
            "set it back, or leave the data's position out:"
            ' checkpoint.exclude_from_loading = ["dataloader"]',
        )
        for key, value in expected.items()
        if state.get(key) != value
    ]
    if problems:
        raise ConfigError(problems)


def open_training_data(
    job: Job, *, dp_rank: int, dp_degree: int, prepared: Prepared | None = None
) -> TrainingData:
    """The training data of one data-parallel rank, at its beginning.

    prepared: where the shards are; without it they are found, or made, first. Raises ConfigError,
    DataError.
    """
    assert 0 <= dp_rank < dp_degree
    if job.data.streaming:
        from titan_recipes.trainer.data.stream import open_stream

        return open_stream(job, dp_rank=dp_rank, dp_degree=dp_degree)
    asked = training_sources(job)
    sources = [TokenShards(path) for path in (prepared or ensure_prepared(job)).training]
    seq_len, seed = job.training.seq_len, job.debug.seed
    counts = [source.num_samples(seq_len) for source in sources]
    weights = [source.weight for source in asked]
    order = SampleOrder(counts, weights, seed=seed, shuffle=job.data.shuffle)
    windows = _Windows(
        sources=sources,
        order=order,
        seq_len=seq_len,
        batch_size=job.training.local_batch_size,
        document_mask=job.data.document_mask,
    )
    return ShardedData(
        windows=windows,
        dp_rank=dp_rank,
        dp_degree=dp_degree,
        options=job.training.dataloader,
        identity={
            "seq_len": seq_len,
            "seed": seed,
            "shuffle": job.data.shuffle,
            "sources": " ".join(source.digest for source in sources),
            "weights": " ".join(map(repr, weights)),
        },
    )


@dataclass(frozen=True, slots=True)
class ValidationData:
    """Batches of held-out text, in stored order, from its beginning at each iteration."""

    windows: _Windows
    starts: range
    options: DataLoaderOptions

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self.windows, self.starts, self.options)


def open_validation_data(
    job: Job, *, dp_rank: int, dp_degree: int, prepared: Prepared | None = None
) -> Iterable[Batch]:
    """The validation batches of one rank: validation.steps, or as many as are full on all ranks.

    prepared as in `open_training_data`. Raises ConfigError, DataError.
    """
    settings = job.validation
    path = (prepared or ensure_prepared(job)).validation
    assert path is not None, "validation is off"
    shards = TokenShards(path)
    stride = dp_degree * settings.local_batch_size
    num_samples = shards.num_samples(settings.seq_len)
    full = num_samples // stride
    count = full if settings.steps == -1 else min(settings.steps, full)
    order = SampleOrder([num_samples], [1.0], seed=0, shuffle=False)
    windows = _Windows(
        sources=[shards],
        order=order,
        seq_len=settings.seq_len,
        batch_size=settings.local_batch_size,
        document_mask=job.data.document_mask,
    )
    starts = range(dp_rank * settings.local_batch_size, count * stride, stride)
    return ValidationData(windows, starts, settings.dataloader)
