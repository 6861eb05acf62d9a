"""Shards give back what was written, and name the file that was damaged."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from titan_recipes.errors import DataError
from titan_recipes.trainer.data.shards import (
    BLOCK_BYTES,
    ShardWriter,
    TokenShards,
    commit,
    is_finished,
    token_dtype,
)


def _write(directory: Path, shards: list[list[list[int]]], vocab_size: int = 2048) -> TokenShards:
    """Shards of documents of ids."""
    partial = directory / "x.partial"
    partial.mkdir(parents=True)
    dtype = token_dtype(vocab_size)
    for number, documents in enumerate(shards):
        with ShardWriter(partial, number, dtype) as writer:
            for ids in documents:
                writer.add([ids[:1], ids[1:]])
    commit(partial, directory / "x", len(shards), dtype, {"dataset": "made"})
    return TokenShards(directory / "x")


def _two_large_shards(directory: Path) -> TokenShards:
    ids = [i % 2000 for i in range(BLOCK_BYTES)]  # two bytes each: two blocks
    return _write(directory, [[ids, ids[:10]], [ids]])


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(65_536, 2), (65_537, 4), (128_256, 4)])
def test_shards_round_trip_at_any_vocabulary(
    tmp_path: Path, vocab_size: int, itemsize: int
) -> None:
    documents = [[[1, 2, vocab_size - 1], [5]], [[], [7, 8, 9, 10]], [[11]]]
    shards = _write(tmp_path, documents, vocab_size)
    flat = [1, 2, vocab_size - 1, 5, 7, 8, 9, 10, 11]
    assert shards.read(0, 9).tolist() == flat
    assert shards.read(0, 9).dtype == np.int64
    assert (shards.num_tokens, shards.num_documents) == (9, 5)
    assert (tmp_path / "x" / "00000.tokens").stat().st_size == 4 * itemsize
    assert shards.document_starts(0, 9).tolist() == [0, 3, 4, 4, 8]
    assert shards.document_starts(1, 8).tolist() == [3, 4, 4]
    assert shards.document_starts(5, 5).tolist() == []


def test_shards_samples_cross_borders_and_overlap_by_one(tmp_path: Path) -> None:
    shards = _write(tmp_path, [[[0, 1, 2], [3, 4]], [[5]], [[6, 7, 8, 9, 10]]])
    assert shards.num_samples(3) == 3
    starts = [shards.sample_start(i, 3) for i in range(3)]
    assert [shards.read(start, start + 4).tolist() for start in starts] == [
        [0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9],
    ]  # fmt: skip
    assert [shards.num_samples(n) for n in (10, 11, 2)] == [1, 0, 5]


def test_shards_digest_is_of_content_not_place(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", [[[1, 2, 3]]])
    assert first.digest == _write(tmp_path / "b", [[[1, 2, 3]]]).digest
    assert first.digest != _write(tmp_path / "c", [[[1, 2, 4]]]).digest
    assert first.digest != _write(tmp_path / "d", [[[1, 2], [3]]]).digest
    assert first.digest != _write(tmp_path / "e", [[[1, 2, 3]]], 2**17).digest


def test_shards_pickled_reopens_files(tmp_path: Path) -> None:
    shards = _two_large_shards(tmp_path)
    shards.read(0, 10)
    blob = pickle.dumps(shards)
    assert len(blob) < 500
    assert pickle.loads(blob).read(5, 8).tolist() == [5, 6, 7]


@pytest.mark.parametrize("name", ["00000.tokens", "00001.tokens"])
def test_shards_flipped_byte_is_data_error_naming_file(tmp_path: Path, name: str) -> None:
    shards = _two_large_shards(tmp_path)
    path = tmp_path / "x" / name
    damaged = bytearray(path.read_bytes())
    damaged[BLOCK_BYTES + 1000] ^= 1
    path.write_bytes(damaged)
    shards = TokenShards(tmp_path / "x")
    base = 0 if name.startswith("00000") else BLOCK_BYTES + 10
    in_first_block = shards.read(base, base + 100)
    assert in_first_block.tolist() == list(range(100))
    with pytest.raises(DataError, match=rf"{path}: damaged: bytes 262,144 to") as raised:
        shards.read(base + BLOCK_BYTES // 2, base + BLOCK_BYTES // 2 + 1)
    assert raised.value.exit_code == 3


def test_shards_flipped_byte_in_documents_is_data_error(tmp_path: Path) -> None:
    _two_large_shards(tmp_path)
    path = tmp_path / "x" / "00000.documents"
    damaged = bytearray(path.read_bytes())
    damaged[8] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=f"{path}: damaged"):
        TokenShards(tmp_path / "x").document_starts(0, 5)


@pytest.mark.parametrize("suffix", ["tokens", "documents", "crc32"])
@pytest.mark.parametrize("change", ["truncated", "longer", "missing"])
def test_shards_wrong_size_or_missing_is_data_error_at_open(
    tmp_path: Path, suffix: str, change: str
) -> None:
    _two_large_shards(tmp_path)
    path = tmp_path / "x" / f"00001.{suffix}"
    content = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if change == "truncated" else content + b"\0")
    with pytest.raises(DataError, match=f"{path}: ") as raised:
        TokenShards(tmp_path / "x")
    expected = "No such file" if change == "missing" else f"instead of {len(content):,}"
    assert expected in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', None])
def test_shards_unreadable_index_is_data_error(tmp_path: Path, text: str | None) -> None:
    _write(tmp_path, [[[1]]])
    path = tmp_path / "x" / "index.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(DataError, match=f"{path}: not readable"):
        TokenShards(tmp_path / "x")


def test_shards_other_version_is_data_error(tmp_path: Path) -> None:
    _write(tmp_path, [[[1]]])
    path = tmp_path / "x" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(DataError, match="format version 99, this titan-recipes reads 1"):
        TokenShards(tmp_path / "x")


def test_shards_failed_writer_is_not_finished_and_leaves_nothing(tmp_path: Path) -> None:
    partial = tmp_path / "y.partial"
    partial.mkdir()

    def fail() -> None:
        with ShardWriter(partial, 0, token_dtype(2048)) as writer:
            writer.add([[1, 2, 3]])
            writer.add([[1 // 0]])

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(partial.iterdir()) == []
    with ShardWriter(partial, 0, token_dtype(2048)) as writer:
        writer.add([[4]])
        assert not is_finished(partial, 0)
    assert is_finished(partial, 0)
    (partial / ".00000.tokens.999999").touch()  # what a killed process leaves
    commit(partial, tmp_path / "y", 1, token_dtype(2048), {})
    names = sorted(path.name for path in (tmp_path / "y").iterdir())
    assert names == ["00000.crc32", "00000.documents", "00000.tokens", "index.json"]
    assert TokenShards(tmp_path / "y").read(0, 1).tolist() == [4]
