"""Corpora for the data tests: small, made by a seed, no two documents alike."""

import json
import random
from pathlib import Path

from titan_recipes.config.data_root import data_root
from titan_recipes.trainer.data.tokenizer import Tokenizer, load_tokenizer

DEMO_TOKENIZER = data_root() / "recipes" / "llama3_debug" / "tokenizer.model"


def demo_tokenizer() -> Tokenizer:
    """The tokenizer of llama3_debug."""
    return load_tokenizer(DEMO_TOKENIZER)


def words(seed: int, count: int) -> str:
    """Text that looks like text to a tokenizer, the same for the same seed."""
    drawn = random.Random(seed)
    letters = "etaoinshrdlu"
    return " ".join("".join(drawn.choices(letters, k=drawn.randint(1, 9))) for _ in range(count))


def write_jsonl(path: Path, rows: int, *, seed: int = 0, count: int = 30) -> Path:
    """A jsonl file of documents that all differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": f"{i} {words(seed + i, count)}"}) for i in range(rows))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
