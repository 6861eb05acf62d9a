"""Documents: the text files that a source names, cut into chunks that processes can share.

A text file is one document; a line of JSON and a row of a parquet or arrow table is one each,
read for its text or as a whole. What can't be read is a DataError that names the file and the line
or row.
"""

import contextlib
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True, slots=True)
class Row:
    """One row of JSON or of a table; where: names its file and place, for messages."""

    value: Any
    where: Callable[[], str]


def read(chunk: Chunk, text_key: str) -> Iterator[str]:
    """The documents of a chunk, in order. Raises DataError."""
    file = chunk.file
    with _readable(file):
        if file.kind == "json":
            for row in _json_rows(chunk):
                yield _text_of_row(row, text_key)
        elif file.kind == "text":
            with _open(file) as stream:
                yield _decode(file, stream.read())
        else:
            for row in _table_rows(chunk, text_key):
                if not isinstance(row.value, str):
                    raise DataError(f"{row.where()} holds no text under {text_key!r}")
                yield row.value


def read_rows(chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk of JSON or of a table, each a whole dict. Raises DataError."""
    assert chunk.file.kind != "text", "a text file has no rows"
    with _readable(chunk.file):
        yield from _json_rows(chunk) if chunk.file.kind == "json" else _table_rows(chunk)


@contextlib.contextmanager
def _readable(file: TextFile) -> Generator[None]:
    try:
        yield
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


def _json_rows(chunk: Chunk) -> Iterator[Row]:
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
                where = partial(_line_number, chunk, position)
                yield Row(_parse(line, where), where)
            position += len(line)


def _parse(line: bytes, where: Callable[[], str]) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:  # UnicodeDecodeError too
        raise DataError(f"{where()}: not a JSON object on one line: {error}") from error


def _text_of_row(row: Row, text_key: str) -> str:
    value = row.value
    text = value.get(text_key) if isinstance(value, dict) else None
    if not isinstance(text, str):
        has = ", ".join(map(repr, value)) if isinstance(value, dict) else "is no object"
        raise DataError(f"{row.where()}: no text under {text_key!r} ({has}); set data.text_key")
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


def _table_rows(chunk: Chunk, column: str = "") -> Iterator[Row]:
    """The rows of a table's chunk; column: the one that alone is wanted, "" = all as a dict."""
    file = chunk.file
    with contextlib.ExitStack() as opened:
        if file.kind == "parquet":
            table = opened.enter_context(_parquet(file))
            schema, groups = table.schema_arrow, list(range(chunk.start, chunk.stop))
            columns = [column] if column else None
            batches: Any = table.iter_batches(_BATCH_ROWS, groups, columns=columns)
            number = sum(table.metadata.row_group(i).num_rows for i in range(chunk.start))
        else:
            source = opened.enter_context(pa.memory_map(str(file.path)))
            batches = opened.enter_context(pa.ipc.open_stream(source))
            schema, number = batches.schema, 0
        if column and column not in schema.names:
            names = ", ".join(map(repr, schema.names))
            raise DataError(
                f"{file.path}: no column {column!r} (it has {names}); set data.text_key"
            )
        for batch in batches:
            for value in (batch.column(column) if column else batch).to_pylist():
                number += 1
                yield Row(value, partial("{}: row {}".format, file.path, number))
