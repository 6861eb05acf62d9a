"""Token shards: tokenized documents on disk, and the reader that training samples come from.

    <directory>/
      index.json          format version, token type, counts of each shard, what was tokenized
      00000.tokens        token ids, uint16 (vocabularies up to 65,536) or uint32, little-endian
      00000.documents     uint64: where each document of the shard starts, in tokens
      00000.crc32         uint32: checksum of each block of 00000.tokens, then of 00000.documents
      00000.counts        JSON: what was counted on the way, where anything was

A document is [bos] ids [eos]. Shards of conversations are rows of windows instead, each a sample,
and the highest bit of a token says that it is trained on.

A directory appears by one rename: one that is there is complete.
Opening it compares every file's size; a block's checksum is compared when a process first reads
from it. What doesn't agree is a DataError that names the file.
"""

import hashlib
import json
import os
import zlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np

from titan_recipes.config.layout import replace_file, sync_directory
from titan_recipes.errors import DataError

FORMAT_VERSION = 1
BLOCK_BYTES = 256 * 1024
INDEX = "index.json"
_OFFSET = np.dtype("<u8")
_CHECKSUM = np.dtype("<u4")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def marked_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id and a mark."""
    return token_dtype(2 * vocab_size)


def trained_mark(dtype: np.dtype) -> int:
    """The bit that marks a token as trained on, in shards of windows."""
    return 1 << (8 * dtype.itemsize - 1)


def _names(number: int) -> tuple[str, str, str]:
    return f"{number:05d}.tokens", f"{number:05d}.documents", f"{number:05d}.crc32"


def _counts_name(number: int) -> str:
    return f"{number:05d}.counts"


def _num_blocks(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES)


class _BlockWriter:
    """A file written front to back, with the checksum of each block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checksums: list[int] = []
        self._file = path.open("wb")
        self._pending = bytearray()

    def write(self, data: bytes) -> None:
        self._pending += data
        full = len(self._pending) // BLOCK_BYTES * BLOCK_BYTES
        if full:
            self._flush(full)

    def _flush(self, num_bytes: int) -> None:
        with memoryview(self._pending)[:num_bytes] as ready:
            starts = range(0, num_bytes, BLOCK_BYTES)
            self.checksums += [zlib.crc32(ready[start : start + BLOCK_BYTES]) for start in starts]
            self._file.write(ready)
        del self._pending[:num_bytes]

    def finish(self) -> None:
        self._flush(len(self._pending))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        self._file.close()
        self.path.unlink()


class ShardWriter:
    """Writes one shard, as a context manager; it is there once the block ended without an error.

    Until then its files have scratch names; .crc32 gets its own last and is the mark of the end.
    """

    def __init__(self, directory: Path, number: int, dtype: np.dtype) -> None:
        self.num_tokens = 0
        self.counts: dict[str, int] = {}
        self._directory = directory
        self._counts = directory / _counts_name(number)
        self._names = _names(number)
        self._typecode = "H" if dtype.itemsize == 2 else "I"
        tokens, documents, checksums = (
            directory / f".{name}.{os.getpid()}" for name in self._names
        )
        self._tokens = _BlockWriter(tokens)
        self._documents = _BlockWriter(documents)
        self._checksums = checksums

    def add(self, pieces: Iterable[list[int]]) -> None:
        """Append one document, given as lists of ids one after the other."""
        self._documents.write(self.num_tokens.to_bytes(_OFFSET.itemsize, "little"))
        for ids in pieces:
            values = array(self._typecode, ids)
            self._tokens.write(values.tobytes())
            self.num_tokens += len(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        else:
            self._tokens.abandon()
            self._documents.abandon()

    def _finish(self) -> None:
        self._tokens.finish()
        self._documents.finish()
        checksums = np.array(self._tokens.checksums + self._documents.checksums, _CHECKSUM)
        with self._checksums.open("wb") as file:
            file.write(checksums.tobytes())
            file.flush()
            os.fsync(file.fileno())
        if self.counts:
            self._counts.write_text(json.dumps(self.counts), encoding="utf-8")
        written = (self._tokens.path, self._documents.path, self._checksums)
        for path, name in zip(written, self._names, strict=True):
            path.replace(self._directory / name)


def is_finished(directory: Path, number: int) -> bool:
    """Whether a shard was written to its end."""
    return (directory / _names(number)[2]).exists()


def commit(
    partial: Path,
    final: Path,
    num_shards: int,
    dtype: np.dtype,
    about: dict[str, Any],
    *,
    window: int = 0,
) -> None:
    """Turn a directory of finished shards into the final one by one rename.

    about: what was tokenized, kept in the index as it is. window: tokens of each window that the
    shards are rows of; 0 = samples may begin anywhere. Scratch files of killed writers go.
    """
    for scratch in partial.glob(".*"):
        scratch.unlink()
    shards: list[dict[str, int]] = []
    counts: Counter[str] = Counter()
    digest = hashlib.sha256(dtype.str.encode())
    for number in range(num_shards):
        tokens, documents, checksums = (partial / name for name in _names(number))
        num_tokens = tokens.stat().st_size // dtype.itemsize
        num_documents = documents.stat().st_size // _OFFSET.itemsize
        shards.append({"num_tokens": num_tokens, "num_documents": num_documents})
        digest.update(f"{num_tokens} {num_documents}".encode() + checksums.read_bytes())
        if (path := partial / _counts_name(number)).exists():
            counts.update(json.loads(path.read_text(encoding="utf-8")))
    index = {
        "version": FORMAT_VERSION,
        "dtype": dtype.str,
        "digest": digest.hexdigest(),
        "window": window,
        "shards": shards,
        "counts": counts,
        "about": about,
    }
    replace_file(partial / INDEX, json.dumps(index, indent=1))
    sync_directory(partial)
    partial.rename(final)
    sync_directory(final.parent)


def _unusable(path: Path, got: str) -> DataError:
    return DataError(f"{path}: {got}; delete {path.parent} and the text is tokenized again")


class _BlockFile:
    """A mapped file whose blocks are compared with their checksums when first read."""

    def __init__(self, path: Path, dtype: np.dtype, checksums: np.ndarray) -> None:
        self._path = path
        self._dtype = dtype
        self._checksums = checksums
        self._unread = bytearray(b"\1" * len(checksums))
        self._bytes = np.memmap(path, np.uint8, "r") if len(checksums) else np.empty(0, np.uint8)
        self._values = self._bytes.view(dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Values [start, stop), as a view of the file. Raises DataError for a damaged block."""
        size = self._dtype.itemsize
        first, last = start * size // BLOCK_BYTES, _num_blocks(stop * size)
        if self._unread.find(1, first, last) >= 0:
            self._compare(first, last)
        return self._values[start:stop]

    def _compare(self, first: int, last: int) -> None:
        for number in range(first, last):
            block = self._bytes[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            if zlib.crc32(block.tobytes()) != self._checksums[number]:
                start = number * BLOCK_BYTES
                got = f"bytes {start:,} to {start + len(block):,} don't have their checksum"
                raise _unusable(self._path, f"damaged: {got}")
            self._unread[number] = 0


class TokenShards:
    """A directory of shards, read as one long row of tokens."""

    def __init__(self, directory: Path) -> None:
        """Open it in O(1): read the index, compare sizes. Raises DataError."""
        self.directory = directory
        index = self._read_index()
        self.about: dict[str, Any] = index["about"]
        self.digest: str = index["digest"]
        """Identifies the tokens and their documents, wherever and whenever they were written."""
        self.window: int = index["window"]
        """Tokens of each window that these shards are rows of; 0 = samples may begin anywhere."""
        self.counts: Counter[str] = Counter(index["counts"])
        """What was counted when they were written."""
        self._dtype = np.dtype(index["dtype"])
        self._num_tokens: list[int] = [shard["num_tokens"] for shard in index["shards"]]
        self._num_documents: list[int] = [shard["num_documents"] for shard in index["shards"]]
        self._starts = [0, *accumulate(self._num_tokens)]
        self._opened: dict[int, tuple[_BlockFile, _BlockFile]] = {}
        self.num_tokens = self._starts[-1]
        self.num_documents = sum(self._num_documents)
        self.num_bytes = sum(self._check_size(number) for number in range(len(self._num_tokens)))

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenShards, (self.directory,)  # a worker process opens the files itself

    def num_samples(self, seq_len: int) -> int:
        """Samples of seq_len + 1 tokens.

        A sample's last token is the next one's first, and samples cross the borders of documents
        and shards; but where there are windows, each is a sample.
        """
        if self.window:
            assert self.window == seq_len + 1
            return self.num_tokens // self.window
        return max(0, self.num_tokens - 1) // seq_len

    def sample_start(self, index: int, seq_len: int) -> int:
        """The first token of a sample."""
        return index * (self.window or seq_len)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as a new int64 array. Raises DataError."""
        stored = self._stored(start, stop)
        return stored & (trained_mark(self._dtype) - 1) if self.window else stored

    def is_trained(self, start: int, stop: int) -> np.ndarray:
        """Of each of the tokens [start, stop) whether it is trained on: bool."""
        if not self.window:
            return np.ones(stop - start, np.bool_)
        return self._stored(start, stop) >= trained_mark(self._dtype)

    def _stored(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.num_tokens
        tokens = np.empty(stop - start, np.int64)
        for number, first, last in self._spans(start, stop):
            base = self._starts[number]
            tokens[base + first - start : base + last - start] = self._open(number)[0].read(
                first, last
            )
        return tokens

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Where documents begin among the tokens [start, stop): int64 positions, ascending."""
        found: list[np.ndarray] = [np.empty(0, np.int64)]
        for number, first, last in self._spans(start, stop):
            starts = self._open(number)[1].read(0, self._num_documents[number])
            low, high = np.searchsorted(starts, np.array([first, last], _OFFSET))
            found.append(starts[low:high].astype(np.int64) + self._starts[number])
        return np.concatenate(found)

    def _spans(self, start: int, stop: int) -> Iterable[tuple[int, int, int]]:
        """(shard, first, last) of every shard that holds some of the tokens [start, stop)."""
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            base, end = self._starts[number], self._starts[number + 1]
            if start < end:
                yield number, start - base, min(stop, end) - base
                start = min(stop, end)
            number += 1

    def _read_index(self) -> dict[str, Any]:
        path = self.directory / INDEX
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = index["version"]
            if version == FORMAT_VERSION:
                kept = {key: index[key] for key in ("dtype", "digest", "shards", "about")}
                return {"window": 0, "counts": {}} | index | kept
        except (OSError, ValueError, KeyError, TypeError) as error:
            got = f"not readable as an index of token shards ({error})"
            raise _unusable(path, got) from error
        got = f"format version {version}, this titan-recipes reads {FORMAT_VERSION}"
        raise _unusable(path, got)

    def _sizes(self, number: int) -> tuple[int, int, int]:
        """Bytes that the three files of a shard must have."""
        tokens = self._num_tokens[number] * self._dtype.itemsize
        documents = self._num_documents[number] * _OFFSET.itemsize
        blocks = _num_blocks(tokens) + _num_blocks(documents)
        return tokens, documents, blocks * _CHECKSUM.itemsize

    def _check_size(self, number: int) -> int:
        expected_sizes = self._sizes(number)
        for name, expected in zip(_names(number), expected_sizes, strict=True):
            path = self.directory / name
            try:
                size = path.stat().st_size
            except OSError as error:
                got = f"can't be read ({error.strerror})"
            else:
                if size == expected:
                    continue
                got = f"has {size:,} bytes instead of {expected:,}"
            raise _unusable(path, got)
        return sum(expected_sizes)

    def _open(self, number: int) -> tuple[_BlockFile, _BlockFile]:
        if number not in self._opened:
            tokens, documents, checksums = (self.directory / name for name in _names(number))
            split = _num_blocks(self._sizes(number)[0])
            try:
                known = np.fromfile(checksums, _CHECKSUM)
                self._opened[number] = (
                    _BlockFile(tokens, self._dtype, known[:split]),
                    _BlockFile(documents, _OFFSET, known[split:]),
                )
            except OSError as error:
                got = f"shard {number} can't be read: {error}"
                raise DataError(f"{self.directory}: {got}") from error
        return self._opened[number]
