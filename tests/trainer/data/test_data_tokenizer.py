"""Tokenizers: the kind is told by content, the ids are those of Hugging Face's own library."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from data_corpora import DEMO_TOKENIZER, demo_tokenizer, words
from train_tokenizer import to_tiktoken, train

from titan_recipes.config.schema import Assets, Model
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.data.sources import stdlib_files
from titan_recipes.trainer.data.tokenizer import (
    LLAMA3_NUM_RANKS,
    MAX_PIECE_CHARS,
    load_job_tokenizer,
    load_tokenizer,
    resolve_tokenizer_path,
)

HARD_TEXTS = [
    "",
    " ",
    "def f(x):\n\treturn x ** 2  # twice\n\n\n    pass\r\n",
    "It's 1234567 o'clock; they'LL say <|begin_of_text|> and <|eot_id|>.",
    "na\u00efve \u4f60\u597d \U0001f600 \u0301\u200d\u00a0end",
    "\n \n  \n\t\n",
]


@pytest.fixture(scope="module")
def trained() -> tokenizers.Tokenizer:
    """A Hugging Face BPE of 500 ids in all, trained on one module of the library."""
    source = next(file for file in stdlib_files() if file.name == "argparse.py")
    return train([source.path.read_text()], vocab_size=500)


@pytest.fixture
def rank_file(trained: tokenizers.Tokenizer, tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_text(to_tiktoken(trained))
    return path


def test_tokenizer_tiktoken_ids_equal_hugging_face(
    trained: tokenizers.Tokenizer, rank_file: Path
) -> None:
    tokenizer = load_tokenizer(rank_file)
    texts = [*HARD_TEXTS, *(file.path.read_text() for file in stdlib_files()[::23])]
    assert len(texts) > 20
    for text in texts:
        assert tokenizer.encode(text) == trained.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_demo_file_is_2048_ids_with_bos_and_eos_last() -> None:
    tokenizer = demo_tokenizer()
    assert (tokenizer.kind, tokenizer.vocab_size) == ("tiktoken", 2048)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2046, 2047)
    assert tokenizer.decode([2046, 2047]) == "<|begin_of_text|><|end_of_text|>"
    text = stdlib_files()[0].path.read_text()
    assert max(tokenizer.encode(text)) < 2046
    assert len(text) / len(tokenizer.encode(text)) > 2.5
    assert max(tokenizer.encode("<|begin_of_text|>")) < 2046


def test_tokenizer_llama3_sized_file_has_published_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "anything"
    tokens = [bytes([i]) for i in range(256)]
    tokens += [i.to_bytes(4, "big") for i in range(LLAMA3_NUM_RANKS - 256)]
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == 128_256
    assert (tokenizer.bos_id, tokenizer.eos_id) == (128_000, 128_001)
    named = {128_004: "<|finetune_right_pad_id|>", 128_006: "<|start_header_id|>"}
    named |= {128_009: "<|eot_id|>", 128_010: "<|python_tag|>"}
    named |= {128_011: "<|reserved_special_token_2|>", 128_255: "<|reserved_special_token_246|>"}
    assert {id: tokenizer.decode([id]) for id in named} == named


def _hugging_face(directory: Path, trained: tokenizers.Tokenizer) -> Path:
    made = tokenizers.Tokenizer.from_str(trained.to_str())
    made.add_special_tokens(["<s>", "</s>", "<|endoftext|>"])
    made.enable_truncation(3)
    made.enable_padding(length=9)
    made.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def test_tokenizer_hugging_face_file_encodes_ordinary_text(
    tmp_path: Path, trained: tokenizers.Tokenizer
) -> None:
    tokenizer = load_tokenizer(_hugging_face(tmp_path, trained))
    assert (tokenizer.kind, tokenizer.vocab_size) == ("Hugging Face", 501)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (498, 499)
    for text in [*HARD_TEXTS, "a </s> b<|endoftext|>", words(0, 50)]:
        assert tokenizer.encode(text) == trained.encode(text).ids


def test_tokenizer_hugging_face_config_beside_it_names_bos_and_eos(
    tmp_path: Path, trained: tokenizers.Tokenizer
) -> None:
    _hugging_face(tmp_path, trained)
    config = {"bos_token": None, "eos_token": {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 500)


def test_tokenizer_sentencepiece_named_model_is_told_from_tiktoken(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentences = (words(seed, 20) for seed in range(200))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, vocab_size=200, minloglevel=2
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.getvalue())
    tokenizer = load_tokenizer(path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert (tokenizer.kind, tokenizer.vocab_size) == ("sentencepiece", 200)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    text = f"<s> {words(7, 30)}"
    assert tokenizer.encode(text) == reference.encode(text)
    assert tokenizer.decode(tokenizer.encode(words(8, 9))) == words(8, 9)


def test_tokenizer_text_of_any_length_and_content_is_encoded(rank_file: Path) -> None:
    """Three million spaces overflow the regex engine's stack if given at once."""
    tokenizer = load_tokenizer(rank_file)
    for text in (" " * 3_000_000 + "x", "x" * 1_000_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_tokenizer_long_text_is_cut_where_ids_stay_the_same(
    rank_file: Path, trained: tokenizers.Tokenizer
) -> None:
    line = "for x in range(10):\n\n    averylongidentifierwithoutunderscoresinit = x\n"
    text = line * (2 * MAX_PIECE_CHARS // len(line) + 10)
    tokenizer = load_tokenizer(rank_file)
    pieces = [tokenizer.decode(ids) for ids in tokenizer.encode_pieces(text)]
    assert [len(piece) % len(line) for piece in pieces] == [0, 0, 0]
    assert MAX_PIECE_CHARS % len(line)
    assert tokenizer.encode(text) == trained.encode(text).ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no tokenizer of a known format: its 0 bytes"),
        (b"hello there\n", "no tokenizer of a known format"),
        (b"\n\x05hello", "no tokenizer of a known format"),
        (b"\xff\xfe\x00", "no tokenizer of a known format"),
        (b'{"a": 1}', "not a Hugging Face tokenizer"),
        (b'{"a": ', "not a Hugging Face tokenizer"),
        (b"AA== 0\nAQ== 1\n", "no rank for byte 2"),
        (b"AA== 0\nAQ== 2\n", "its 2 ranks are not 0 to 1"),
        (b"AA== 0\nAQ==\n", "line 2 is not base64 and a rank: b'AQ=='"),
        (b"AA== 0\n!!!! 1\n", "line 2 is not base64"),
    ],
)
def test_tokenizer_unusable_file_is_config_error(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_tokenizer(path, hf_repo="meta-llama/Llama-3.1-8B")
    text = str(raised.value)
    assert text.startswith(f"{path}: assets.tokenizer: ")
    assert message in text
    assert "hf download meta-llama/Llama-3.1-8B" in text


def test_tokenizer_missing_file_or_empty_directory_is_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file or directory; set assets\.tokenizer"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"looked for tokenizer\.json, tokenizer\.model, orig"):
        load_tokenizer(tmp_path)


def test_tokenizer_path_settings_override_in_order(make_job, tmp_path: Path) -> None:
    job = make_job(assets=Assets(tokenizer="a/b"))
    assert resolve_tokenizer_path(job) == DEMO_TOKENIZER.parent / "a/b"
    job = replace(job, origin=replace(job.origin, bundle=str(tmp_path)))
    assert resolve_tokenizer_path(job) == tmp_path / "a/b"
    job = replace(job, model=replace(job.model, hf_assets_path="~/hf"))
    assert resolve_tokenizer_path(job) == Path.home() / "hf"
    job = replace(job, model=replace(job.model, tokenizer_path="/t.model"))
    assert resolve_tokenizer_path(job) == Path("/t.model")
    with pytest.raises(ConfigError, match=r"assets\.tokenizer: no tokenizer is named"):
        resolve_tokenizer_path(make_job(assets=Assets()))


def test_tokenizer_larger_than_model_is_config_error(make_job) -> None:
    assert load_job_tokenizer(make_job()).vocab_size == 2048
    model: Model = replace(make_job().model, vocab_size=2047)
    with pytest.raises(ConfigError, match=r"model\.vocab_size: 2047 is less than the 2048 ids"):
        load_job_tokenizer(make_job(model=model))
