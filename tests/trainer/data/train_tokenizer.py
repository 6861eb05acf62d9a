"""Train the demo's tokenizer: a small byte-level BPE, written in tiktoken's format.

    python tests/trainer/data/train_tokenizer.py OUT [--vocab-size 2048] [--files GLOB]

Text is split by Llama 3's regular expression, so the file behaves as Llama 3's own does, only
smaller. It is trained on the Python standard library's sources unless --files names other ones.
The file holds vocab_size - 2 ranks; bos and eos follow them.
"""

import argparse
import base64
from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from titan_recipes.trainer.data.sources import stdlib_files
from titan_recipes.trainer.data.tokenizer import LLAMA3_SPLIT

NUM_SPECIAL = 2


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A Hugging Face byte-level BPE of vocab_size - 2 tokens; id and merge rank are the same."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(LLAMA3_SPLIT), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = BpeTrainer(
        vocab_size=vocab_size - NUM_SPECIAL,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_of_character() -> dict[str, int]:
    """The byte behind each character of byte-level BPE: GPT-2's `bytes_to_unicode`, inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


def to_tiktoken(tokenizer: Tokenizer) -> str:
    """The text of a tiktoken rank file with the same tokens."""
    byte_of = byte_of_character()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = (bytes(byte_of[character] for character in token) for token, _ in vocabulary)
    return "".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens))


def _texts(pattern: str) -> Iterator[str]:
    paths = [Path(name) for name in sorted(glob(pattern, recursive=True))] if pattern else []
    for path in paths or (file.path for file in stdlib_files()):
        yield path.read_text(encoding="utf-8", errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--vocab-size", type=int, default=2048, help="ids in all, bos and eos too")
    parser.add_argument(
        "--files", default="", help="glob of the texts; default the standard library"
    )
    arguments = parser.parse_args()
    if arguments.files and not glob(arguments.files, recursive=True):
        parser.error(f"--files {arguments.files}: no file matches")
    tokenizer = train(_texts(arguments.files), arguments.vocab_size)
    arguments.out.write_text(to_tiktoken(tokenizer), encoding="ascii")
    print(f"{arguments.out}: {tokenizer.get_vocab_size():,} ranks + {NUM_SPECIAL} special tokens")


if __name__ == "__main__":
    main()
