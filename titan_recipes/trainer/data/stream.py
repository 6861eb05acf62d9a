"""Streaming: a hub dataset tokenized and packed while training, without shards on disk.

The exception to everything in order.py: rows come in the order they are stored, each rank reads its
own part of them, and the position is the iterator state of `datasets`, one for each rank. It
resumes exactly, but only at the data-parallel degree it was saved at.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titan_recipes.config.job import Job
from titan_recipes.errors import ConfigError, DataError, Problem
from titan_recipes.trainer.data.loader import Batch, refuse_other_data
from titan_recipes.trainer.data.places import bundle_directory
from titan_recipes.trainer.data.sources import C4, Place, c4_files, hub_repository, load_hub
from titan_recipes.trainer.data.tokenizer import Tokenizer, load_job_tokenizer


@dataclass(kw_only=True)
class StreamedData:
    """Training data out of a stream of rows; the i-th window overlaps the next by one token."""

    rows: Any
    """A `datasets.IterableDataset`, already split by rank."""
    tokenizer: Tokenizer
    name: str
    """Of the dataset, for messages."""
    text_key: str
    seq_len: int
    batch_size: int
    dp_rank: int
    dp_degree: int

    def __post_init__(self) -> None:
        self._rank_key = f"dp_rank_{self.dp_rank}"
        self._identity = {
            "stream": self.name,
            "tokenizer": self.tokenizer.fingerprint,
            "seq_len": self.seq_len,
        }
        self._epoch = 0
        self._has_text = False
        # `datasets` takes a loaded state over when the next row is read, not before.
        self._loaded_rows: dict[str, Any] | None = None
        self._pending: list[int] = []
        self._documents = self._read()

    def _read(self) -> Iterator[list[int]]:
        """Documents as ids, epoch after epoch."""
        while True:
            for row in self.rows:
                self._loaded_rows = None
                text = row.get(self.text_key)
                if not isinstance(text, str):
                    has = ", ".join(map(repr, row))
                    raise DataError(
                        f"{self.name}: a row holds no text under {self.text_key!r}, its keys are"
                        f" {has}; set data.text_key"
                    )
                if ids := self.tokenizer.encode(text):
                    self._has_text = True
                    yield [*self.tokenizer.before, *ids, *self.tokenizer.after]
            if not self._has_text:
                raise DataError(f"{self.name}: this rank's part of the stream holds no text")
            self._loaded_rows = None
            self._epoch += 1
            self.rows.set_epoch(self._epoch)

    def next_batch(self) -> Batch:
        num_tokens = self.batch_size * self.seq_len
        while len(self._pending) < num_tokens + 1:
            self._pending += next(self._documents)
        taken = torch.from_numpy(np.array(self._pending[: num_tokens + 1], np.int64))
        del self._pending[:num_tokens]
        shape = (self.batch_size, self.seq_len)
        return Batch(taken[:-1].reshape(shape), taken[1:].reshape(shape))

    def state_dict(self) -> dict[str, Any]:
        """This rank's position, under its own key; ranks' states can be merged into one dict."""
        position = {
            "epoch": self._epoch,
            "pending": self._pending,
            "rows": self._loaded_rows or self.rows.state_dict(),
        }
        return {"dp_degree": self.dp_degree, **self._identity, self._rank_key: json.dumps(position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved_degree = state.get("dp_degree")
        if saved_degree is not None and saved_degree != self.dp_degree:
            rule = "a stream resumes only at the data-parallel degree it was saved at"
            got = f"{rule}: {saved_degree}, this job has {self.dp_degree}"
            cure = "resume with as many ranks, or train on shards (data.streaming = false)"
            raise ConfigError([Problem("checkpoint", "data.streaming", got, cure)])
        refuse_other_data(self._identity, state)
        position = json.loads(state[self._rank_key])
        self._epoch = position["epoch"]
        self._pending = position["pending"]
        self.rows.set_epoch(self._epoch)
        self.rows.load_state_dict(position["rows"])
        self._loaded_rows = position["rows"]
        self._has_text = True  # even if the epoch ends right here
        self._documents = self._read()

    def close(self) -> None:
        pass


def open_stream(job: Job, *, dp_rank: int, dp_degree: int) -> StreamedData:
    """The streamed training data of one rank. Raises ConfigError."""
    from datasets.distributed import split_dataset_by_node

    name, path = job.training.dataset, job.training.dataset_path
    if job.data.sources or name not in ("hub", "c4"):
        asked = "[[data.sources]]" if job.data.sources else f"dataset {name!r}"
        got = f"{asked} can't be streamed"
        cure = 'stream training.dataset "hub" or "c4", or set data.streaming = false'
        raise ConfigError([Problem("train.toml", "data.streaming", got, cure)])
    place = Place("training.dataset_path", path, bundle_directory(job), validation=False)
    if name == "hub":
        repository = hub_repository(place)
        rows = load_hub(place, repository, "train", streaming=True)
    elif path:
        files = [str(file.path) for file in c4_files(place)]
        repository = str(Path(files[0]).parent)
        rows = load_hub(place, "json", "train", data_files=files, streaming=True)
    else:
        repository = C4
        rows = load_hub(place, C4, "train", data_files={"train": "en/c4-train.*"}, streaming=True)
    return StreamedData(
        rows=split_dataset_by_node(rows, dp_rank, dp_degree),
        tokenizer=load_job_tokenizer(job),
        name=repository,
        text_key=job.data.text_key,
        seq_len=job.training.seq_len,
        batch_size=job.training.local_batch_size,
        dp_rank=dp_rank,
        dp_degree=dp_degree,
    )
