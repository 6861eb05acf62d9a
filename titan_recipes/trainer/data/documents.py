"""Documents: the text files that a source names, cut into chunks that processes can share.

A text file is one document; a line of JSON and a row of a parquet or arrow table is one each.
What can't be read is a DataError that names the file and the line or row.
"""

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from titan_recipes.errors import DataError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
COMPRESSED_SUFFIXES = (".gz", ".zst")
TABLE_SUFFIXES = (".parquet", ".arrow")
_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class TextFile:
    """One file of a source; name: relative to the place that the source was looked for."""

    path: Path
    name: str
    size: int

    @property
    def compressed(self) -> bool:
        return self.path.suffix in COMPRESSED_SUFFIXES

    @property
    def kind(self) -> str:
        """ "json", "parquet", "arrow", or "text" for any other suffix."""
        path = self.path.with_suffix("") if self.compressed else self.path
        if path.suffix in JSON_SUFFIXES:
            return "json"
        return path.suffix[1:] if path.suffix in TABLE_SUFFIXES else "text"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a file: [start, stop) in bytes of JSON lines or row groups of parquet; else all."""

    file: TextFile
    start: int
    stop: int
    size: int
    """Bytes on disk, about."""


def chunks(file: TextFile, min_bytes: int) -> list[Chunk]:
    """Cut a file into chunks of min_bytes or a little more, where its format allows it."""
    units = file.size
    if file.kind == "parquet":
        with _parquet(file) as table:
            units = table.num_row_groups
    elif file.kind != "json" or file.compressed:
        return [Chunk(file, 0, file.size, file.size)]
    pieces = max(1, min(file.size // min_bytes, units))
    borders = [units * i // pieces for i in range(pieces + 1)]
    return [
        Chunk(file, start, stop, file.size // pieces) for start, stop in itertools.pairwise(borders)
    ]


def read(chunk: Chunk, text_key: str) -> Iterator[str]:
    """The documents of a chunk, in order. Raises DataError."""
    file = chunk.file
    try:
        if file.kind == "json":
            yield from _json_lines(chunk, text_key)
        elif file.kind == "parquet":
            with _parquet(file) as table:
                _check_column(file, table.schema_arrow, text_key)
                groups = list(range(chunk.start, chunk.stop))
                batches = table.iter_batches(_BATCH_ROWS, groups, columns=[text_key])
                first = sum(table.metadata.row_group(i).num_rows for i in range(chunk.start))
                yield from _rows(file, batches, text_key, first)
        elif file.kind == "arrow":
            with pa.memory_map(str(file.path)) as source, pa.ipc.open_stream(source) as stream:
                _check_column(file, stream.schema, text_key)
                yield from _rows(file, stream, text_key, 0)
        else:
            with _open(file) as stream:
                yield _decode(file, stream.read())
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{file.path}: can't be read: {error}") from error


def _open(file: TextFile) -> BinaryIO:
    if file.path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(file.path))
    if file.path.suffix == ".zst":
        return io.BufferedReader(pa.input_stream(str(file.path), compression="zstd"))
    return file.path.open("rb")


def _decode(file: TextFile, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file.path}: not UTF-8 at byte {error.start:,}") from error


def _json_lines(chunk: Chunk, text_key: str) -> Iterator[str]:
    """The rows whose line starts in the chunk."""
    with _open(chunk.file) as stream:
        position = chunk.start
        if position:  # the chunk before reads the line that this one starts in
            stream.seek(position - 1)
            position += len(stream.readline()) - 1
        while chunk.file.compressed or position < chunk.stop:
            line = stream.readline()
            if not line:
                return
            if not line.isspace():
                yield _text_of_row(line, chunk, position, text_key)
            position += len(line)


def _text_of_row(line: bytes, chunk: Chunk, position: int, text_key: str) -> str:
    try:
        row: Any = json.loads(line)
    except ValueError as error:  # UnicodeDecodeError too
        where = _line_number(chunk, position)
        raise DataError(f"{where}: not a JSON object on one line: {error}") from error
    text = row.get(text_key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        has = ", ".join(map(repr, row)) if isinstance(row, dict) else "is no object"
        where = _line_number(chunk, position)
        raise DataError(f"{where}: no text under {text_key!r} ({has}); set data.text_key")
    return text


def _line_number(chunk: Chunk, position: int) -> str:
    """`file:line` of the line at a byte position, counted only now that it is needed."""
    with _open(chunk.file) as stream:
        number = 1
        while position > 0 and (data := stream.read(min(position, 2**20))):
            number += data.count(b"\n")
            position -= len(data)
    return f"{chunk.file.path}:{number}"


def _parquet(file: TextFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file.path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file.path}: not a parquet file: {error}") from error


def _check_column(file: TextFile, schema: pa.Schema, text_key: str) -> None:
    if text_key not in schema.names:
        names = ", ".join(map(repr, schema.names))
        raise DataError(f"{file.path}: no column {text_key!r} (it has {names}); set data.text_key")


def _rows(file: TextFile, batches: Any, text_key: str, number: int) -> Iterator[str]:
    """The texts of record batches; number: rows before them in the file."""
    for batch in batches:
        for text in batch.column(text_key).to_pylist():
            number += 1
            if not isinstance(text, str):
                raise DataError(f"{file.path}: row {number} holds no text under {text_key!r}")
            yield text
