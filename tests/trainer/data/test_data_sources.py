"""Sources: names become files, files become documents, and every mistake names its place."""

import gzip
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_corpora import write_jsonl

from titan_recipes.config.schema import DataSource
from titan_recipes.errors import ConfigError, DataError
from titan_recipes.trainer.data import documents, sources
from titan_recipes.trainer.data.sources import Source, open_source


def _open(dataset: str, path: str | Path = "", *, bundle: Path = Path("/none")) -> Source:
    asked = DataSource(dataset=dataset, path=str(path))
    return open_source(asked, key="training", text_key="text", bundle=bundle)


def _read(source: Source, min_bytes: int = 2**30) -> list[str]:
    return [
        text
        for file in source.files
        for chunk in documents.chunks(file, min_bytes)
        for text in documents.read(chunk, source.text_key)
    ]


def test_stdlib_training_and_validation_are_disjoint_and_cover_all() -> None:
    training = {file.name for file in _open("stdlib").files}
    validation = {file.name for file in _open("stdlib_validation").files}
    assert not training & validation
    assert training | validation == {file.name for file in sources.stdlib_files()}
    assert 0.005 < len(validation) / len(training | validation) < 0.05
    assert {"argparse.py", "json/decoder.py"} <= training | validation
    names = [part for name in training for part in Path(name).parts]
    assert not {"test", "tests", "site-packages", "dist-packages", "__pycache__"} & set(names)


def test_stdlib_files_all_read_as_documents() -> None:
    texts = _read(_open("stdlib_validation"))
    assert len(texts) == len(_open("stdlib_validation").files)
    assert sum(map(len, texts)) > 50_000


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("stdlb", 'did you mean "stdlib"?'),
        ("c4_tset", 'did you mean "c4_test"?'),
        ("text_validatoin", 'did you mean "text_validation"?'),
        ("zzz", "one of stdlib, text, chat, c4, c4_test, hub, stdlib_validation"),
        ("c4_test_validation", 'did you mean "text_validation"?'),
    ],
)
def test_source_unknown_name_is_config_error(name: str, cure: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _open(name)
    assert str(raised.value).startswith(f'train.toml: training.dataset: no dataset "{name}"; ')
    assert cure in str(raised.value)


@pytest.mark.parametrize(
    ("dataset", "path", "message"),
    [
        ("text", "", 'not set, for dataset "text"; it needs a file'),
        ("hub", "", 'not set, for dataset "hub"; it needs a repository'),
        ("c4_test", "", "its file is not part of titan-recipes: get tests/assets/c4_test"),
        ("text", "/none/x.jsonl", "/none/x.jsonl does not exist"),
        ("text", "/none/*.jsonl", "no file matches /none/*.jsonl"),
        ("stdlib", "asynch", "name a package of the library"),
    ],
)
def test_source_without_usable_path_is_config_error(dataset: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _open(dataset, path)
    assert str(raised.value).startswith("train.toml: training.dataset_path: ")
    assert message in str(raised.value)


def test_source_directory_without_text_is_config_error(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match=f"no text in the directory {tmp_path}"):
        _open("text", tmp_path)


def _mixed_directory(root: Path) -> list[str]:
    """A file of each format; returns the documents in the order of the file names."""
    root.mkdir()
    texts = [f"document {i}\nwith two lines" for i in range(12)]
    rows = [json.dumps({"text": text}).encode() for text in texts]
    (root / "a.jsonl").write_bytes(b"\n".join(rows[:3]) + b"\n\n")
    (root / "b.json").write_bytes(b"\n".join(rows[3:5]))  # no line end at its end
    (root / "c.jsonl.gz").write_bytes(gzip.compress(b"\n".join(rows[5:7])))
    compressed = pa.compress(b"\n".join(rows[7:8]), codec="zstd", asbytes=True)
    (root / "d.jsonl.zst").write_bytes(compressed)
    pq.write_table(pa.table({"text": texts[8:11]}), root / "e.parquet", row_group_size=2)
    (root / "sub").mkdir()
    (root / "sub" / "f.txt").write_text(texts[11])
    (root / "ignored.bin").write_bytes(b"\xff")
    return texts


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
def test_source_in_a_folder_of_somebody_else_is_config_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    uid = os.geteuid()
    os.seteuid(4321)
    try:
        with pytest.raises(ConfigError, match=r"Permission denied; let user 4321 read it"):
            _open("text", tmp_path / "corpus.txt")
    finally:
        os.seteuid(uid)


def test_text_directory_reads_every_format_in_sorted_order(tmp_path: Path) -> None:
    texts = _mixed_directory(tmp_path / "corpus")
    source = _open("text", tmp_path / "corpus")
    assert [file.name for file in source.files] == [
        "a.jsonl", "b.json", "c.jsonl.gz", "d.jsonl.zst", "e.parquet", "sub/f.txt",
    ]  # fmt: skip
    assert _read(source) == texts


@pytest.mark.parametrize("min_bytes", [1, 7, 40, 41, 10_000])
def test_text_cut_anywhere_gives_the_same_documents(tmp_path: Path, min_bytes: int) -> None:
    texts = _mixed_directory(tmp_path / "corpus")
    assert _read(_open("text", tmp_path / "corpus"), min_bytes) == texts


def test_text_glob_and_bundle_relative_path_find_files(tmp_path: Path) -> None:
    _mixed_directory(tmp_path / "corpus")
    globbed = _open("text", f"{tmp_path}/**/*.[jt][sx]*")
    assert [file.name for file in globbed.files] == [
        "corpus/a.jsonl", "corpus/b.json", "corpus/c.jsonl.gz", "corpus/d.jsonl.zst",
        "corpus/sub/f.txt",
    ]  # fmt: skip
    assert _open("text", "corpus/a.jsonl", bundle=tmp_path).files[0].name == "a.jsonl"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', "a.jsonl:3: not a JSON object on one line"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y", "id": 1}\n', "a.jsonl:2: no text under 'text'"),
        ("a.jsonl", b'{"b": "y", "i": 1}\n', "a.jsonl:1: no text under 'text' ('b', 'i'); set"),
        ("a.jsonl", b'{"text": null}\n', "a.jsonl:1: no text under 'text'"),
        ("a.jsonl", b'["x"]\n', "a.jsonl:1: no text under 'text' (is no object)"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: not a JSON object"),
        ("a.txt", b"abc\xff", "a.txt: not UTF-8 at byte 3"),
        ("a.parquet", b"PAR1", "a.parquet: not a parquet file"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: can't be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n')[:-9], "a.jsonl.gz: can't be read: Compr"),
    ],
)  # fmt: skip
def test_text_bad_content_is_data_error_naming_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        _read(_open("text", tmp_path / name))
    assert str(raised.value).startswith(f"{tmp_path}/{message}")


def test_text_bad_line_in_later_chunk_has_its_number_in_the_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows=50)
    lines = path.read_text().splitlines()
    lines[41] = "oops"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a\.jsonl:42: not a JSON object"):
        _read(_open("text", path), min_bytes=1000)


def test_text_parquet_without_the_column_or_text_is_data_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), path)
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text' \(it has 'body', 'id'\)"):
        _read(_open("text", path))
    pq.write_table(pa.table({"text": ["a", "b", "c", None]}), path, row_group_size=2)
    with pytest.raises(DataError, match=r"a\.parquet: row 4 holds no text under 'text'"):
        _read(_open("text", path), min_bytes=1)


def test_c4_local_directory_reads_the_asked_split(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    for name in ("c4-train.00000-of-01024", "c4-train.00001-of-01024", "c4-validation.00000"):
        row = json.dumps({"text": name}).encode()
        (tmp_path / "en" / f"{name}.json.gz").write_bytes(gzip.compress(row))
    assert _read(_open("c4", tmp_path)) == ["c4-train.00000-of-01024", "c4-train.00001-of-01024"]
    assert _read(_open("c4_validation", tmp_path)) == ["c4-validation.00000"]


def test_c4_test_reads_json_lines_of_its_directory(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.json", rows=3)
    assert len(_read(_open("c4_test", tmp_path))) == 3


@pytest.fixture
def _own_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.usefixtures("_own_hub_cache")
def test_hub_local_dataset_directories_read_both_splits(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows" / "train.jsonl", rows=5)
    write_jsonl(tmp_path / "rows" / "validation.jsonl", rows=2, seed=100)
    training, validation = _read(_open("hub", tmp_path / "rows")), None
    validation = _read(_open("hub_validation", tmp_path / "rows"))
    assert [text[:2] for text in training] == ["0 ", "1 ", "2 ", "3 ", "4 "]
    assert len(validation) == 2
    assert not set(training) & set(validation)
    made = datasets.Dataset.from_dict({"text": ["x", "y"]})
    datasets.DatasetDict(train=made).save_to_disk(str(tmp_path / "saved"))
    assert _read(_open("hub", tmp_path / "saved")) == ["x", "y"]


@pytest.mark.usefixtures("_own_hub_cache")
def test_hub_missing_split_is_config_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows" / "train.jsonl", rows=5)
    with pytest.raises(ConfigError, match="split 'validation', can't be loaded: Unknown split"):
        _open("hub_validation", tmp_path / "rows")


def test_source_identity_follows_content_and_not_time(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows=3)
    first = _open("text", path).identity()
    path.touch()
    assert _open("text", path).identity() == first
    moved = tmp_path / "elsewhere" / "a.jsonl"
    moved.parent.mkdir()
    path.rename(moved)
    assert _open("text", moved).identity() == first
    content = moved.read_bytes()
    moved.write_bytes(content.replace(b"0 ", b"9 ", 1))
    assert len(content) == moved.stat().st_size
    assert _open("text", moved).identity() != first


def test_source_identity_of_large_corpus_follows_time_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "HASHED_BYTES", 100)
    path = write_jsonl(tmp_path / "a.jsonl", rows=3)
    first = _open("text", path).identity()
    assert _open("text", path).identity() == first
    path.rename(tmp_path / "b.jsonl")
    assert _open("text", tmp_path / "b.jsonl").identity() != first
