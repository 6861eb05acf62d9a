"""Tokenizers: the three file formats that models publish, behind one small interface.

The format is told by the file's content, because two of them share the name `tokenizer.model`:
a tiktoken rank file has lines of base64 and a number, a Hugging Face tokenizer.json is a JSON
object, sentencepiece is a protobuf. All three encode ordinary text only: what looks like a special
token in a document is text.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titan_recipes.config.job import Job
from titan_recipes.errors import ConfigError, Problem
from titan_recipes.trainer.data.places import below, bundle_directory

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's regular expression that splits text before byte pairs are merged."""

LLAMA3_NUM_RANKS = 128_000
LLAMA3_NUM_SPECIAL = 256
# Names and order as in Meta's llama-models, models/llama3/tokenizer.py; the rest is reserved.
_LLAMA3_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
_BOS_NAMES = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>")
_EOS_NAMES = ("<|end_of_text|>", "</s>", "<eos>", "<|endoftext|>")
_IN_DIRECTORY = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model")

MAX_PIECE_CHARS = 400_000
"""Longer texts are encoded in pieces: tiktoken's regex engine overflows its stack on runs of a
few million spaces, and a book of a gigabyte would need many gigabytes as a list of ids."""

# Llama 3's pattern (and its relatives) always splits between a line end and a visible character,
# so a text that is cut there has the same ids as the whole.
_LINE_END = re.compile(r"\n(?=\S)")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """One tokenizer file, loaded.

    vocab_size: one more than the highest id. bos_id, eos_id: None where the tokenizer has none.
    fingerprint: sha256 of the file, in hex. special_id: the id of a special token by its name, None
    where there is no such token.
    """

    path: Path
    kind: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    fingerprint: str
    encode_text: Callable[[str], list[int]]
    decode_ids: Callable[[list[int]], str]
    special_id: Callable[[str], int | None]

    @property
    def before(self) -> list[int]:
        """What a document begins with: bos, if there is one."""
        return [] if self.bos_id is None else [self.bos_id]

    @property
    def after(self) -> list[int]:
        """What a document ends with: eos, if there is one."""
        return [] if self.eos_id is None else [self.eos_id]

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text, without bos and eos."""
        return [id for piece in self.encode_pieces(text) for id in piece]

    def encode_pieces(self, text: str) -> Iterator[list[int]]:
        """The ids of ordinary text, in as many lists as it was cut into pieces."""
        for piece in _pieces(text):
            try:
                yield self.encode_text(piece)
            except UnicodeEncodeError:
                # Half of a surrogate pair, which JSON can spell but UTF-8 can't: U+FFFD instead.
                yield self.encode_text(
                    piece.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids."""
        return self.decode_ids(list(ids))


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > MAX_PIECE_CHARS:
        stop = start + MAX_PIECE_CHARS
        ends = [match.end() for match in _LINE_END.finditer(text, start, stop + 1)]
        stop = ends[-1] if ends else stop
        yield text[start:stop]
        start = stop
    yield text[start:]


def load_tokenizer(path: Path, *, hf_repo: str = "") -> Tokenizer:
    """Load a tokenizer from its file, or from a directory that has one of the usual names.

    Raises ConfigError where there is none, or none that can be read; `hf_repo` is the repository
    that the message then tells how to download from.
    """
    file = _find(path, hf_repo)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _unusable(file, f"can't be read: {error.strerror}", hf_repo) from error
    for recognise in (_read_tiktoken, _read_hugging_face, _read_sentencepiece):
        tokenizer = recognise(file, content, hf_repo)
        if tokenizer is not None:
            return tokenizer
    raise _unusable(
        file,
        f"no tokenizer of a known format: its {len(content):,} bytes are neither lines of base64"
        " and rank (tiktoken), nor a JSON object (Hugging Face), nor a sentencepiece model",
        hf_repo,
    )


def resolve_tokenizer_path(job: Job) -> Path:
    """Where the job's tokenizer is: model.tokenizer_path, model.hf_assets_path, assets.tokenizer.

    The first that is set counts; a relative path starts at the bundle. Raises ConfigError where
    none is set.
    """
    named = job.model.tokenizer_path or job.model.hf_assets_path or job.assets.tokenizer
    if not named:
        raise _unusable(Path("recipe.toml"), "no tokenizer is named", job.assets.hf_repo)
    return below(bundle_directory(job), named)


def load_job_tokenizer(job: Job) -> Tokenizer:
    """The job's tokenizer, checked to fit the model. Raises ConfigError."""
    tokenizer = load_tokenizer(resolve_tokenizer_path(job), hf_repo=job.assets.hf_repo)
    if tokenizer.vocab_size > job.model.vocab_size:
        ids = tokenizer.vocab_size
        got = f"{job.model.vocab_size} is less than the {ids} ids of {tokenizer.path}"
        cure = f"set {ids} or more, or use the model's own tokenizer"
        raise ConfigError([Problem("model.toml", "model.vocab_size", got, cure)])
    return tokenizer


def _unusable(path: Path, got: str, hf_repo: str) -> ConfigError:
    cure = "set assets.tokenizer to a tokenizer file or its directory"
    if hf_repo:
        cure = (
            f"get it with `hf download {hf_repo} --include '*tokenizer*' --local-dir DIR` and"
            " `--set 'assets.tokenizer=\"DIR\"'`"
        )
    return ConfigError([Problem(str(path), "assets.tokenizer", got, cure)])


def _find(path: Path, hf_repo: str) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise _unusable(path, "no such file or directory", hf_repo)
    for name in _IN_DIRECTORY:
        if (path / name).is_file():
            return path / name
    looked_for = ", ".join(_IN_DIRECTORY)
    raise _unusable(path, f"no tokenizer in this directory (looked for {looked_for})", hf_repo)


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _parse_ranks(path: Path, content: bytes, hf_repo: str) -> dict[bytes, int] | None:
    """The ranks of a tiktoken file; None where the first line is not one of such a file."""
    lines = content.splitlines()
    if not lines or not re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} \d+", lines[0]):
        return None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            got = f"line {number + 1} is not base64 and a rank: {line[:40]!r}"
            raise _unusable(path, got, hf_repo) from error
    if sorted(ranks.values()) != list(range(len(lines))):
        got = f"its {len(lines):,} ranks are not 0 to {len(lines) - 1:,}, each once: torn or edited"
        raise _unusable(path, got, hf_repo)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise _unusable(path, f"no rank for byte {missing[0]}: not a byte-level tokenizer", hf_repo)
    return ranks


def _read_tiktoken(path: Path, content: bytes, hf_repo: str) -> Tokenizer | None:
    ranks = _parse_ranks(path, content, hf_repo)
    if ranks is None:
        return None
    import tiktoken

    names = _LLAMA3_NAMED[:2]
    if len(ranks) == LLAMA3_NUM_RANKS:
        reserved = LLAMA3_NUM_SPECIAL - len(_LLAMA3_NAMED)
        names = (*_LLAMA3_NAMED, *(f"<|reserved_special_token_{2 + i}|>" for i in range(reserved)))
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    encoding = tiktoken.Encoding(
        path.name, pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=special
    )
    return Tokenizer(
        path=path,
        kind="tiktoken",
        vocab_size=len(ranks) + len(special),
        bos_id=special["<|begin_of_text|>"],
        eos_id=special["<|end_of_text|>"],
        fingerprint=_fingerprint(content),
        encode_text=encoding.encode_ordinary,
        decode_ids=encoding.decode,
        special_id=special.get,
    )


def _special_token(directory: Path, key: str) -> tuple[bool, str | None]:
    """Whether a file beside tokenizer.json names this token, and the name ("bos_token": null)."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            settings: Any = json.loads((directory / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise _unusable(directory / name, f"can't be read: {error}", "") from error
        if isinstance(settings, dict) and key in settings:
            value = settings[key]
            return True, value["content"] if isinstance(value, dict) else value
    return False, None


def _read_hugging_face(path: Path, content: bytes, hf_repo: str) -> Tokenizer | None:
    if not content.lstrip().startswith(b"{"):
        return None
    import tokenizers

    try:
        made = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # tokenizers raises plain Exception for whatever is wrong
        raise _unusable(path, f"not a Hugging Face tokenizer: {error}", hf_repo) from error
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True  # as text

    added = {token.content: id for id, token in made.get_added_tokens_decoder().items()}

    def named_id(key: str, usual: tuple[str, ...]) -> int | None:
        known, name = _special_token(path.parent, key)
        names = ([name] if name else []) if known else usual
        ids = (made.token_to_id(name) for name in names)
        return next((id for id in ids if id is not None), None)

    return Tokenizer(
        path=path,
        kind="Hugging Face",
        vocab_size=max(made.get_vocab(with_added_tokens=True).values()) + 1,
        bos_id=named_id("bos_token", _BOS_NAMES),
        eos_id=named_id("eos_token", _EOS_NAMES),
        fingerprint=_fingerprint(content),
        encode_text=lambda text: made.encode(text, add_special_tokens=False).ids,
        decode_ids=lambda ids: made.decode(ids, skip_special_tokens=False),
        special_id=added.get,
    )


def _read_sentencepiece(path: Path, content: bytes, hf_repo: str) -> Tokenizer | None:
    if not content.startswith(b"\n"):  # field 1 of the protobuf, the pieces
        return None
    import sentencepiece

    try:
        made: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        return None

    def or_none(id: int) -> int | None:
        return id if id >= 0 else None

    def piece_id(name: str) -> int | None:
        found = made.piece_to_id(name)  # an unknown name has the id of the unknown piece
        return found if made.id_to_piece(found) == name else None

    return Tokenizer(
        path=path,
        kind="sentencepiece",
        vocab_size=made.vocab_size(),
        bos_id=or_none(made.bos_id()),
        eos_id=or_none(made.eos_id()),
        fingerprint=_fingerprint(content),
        encode_text=made.encode,
        decode_ids=made.decode,
        special_id=piece_id,
    )
