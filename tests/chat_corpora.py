"""Conversations for tests, and a tokenizer that knows the special tokens of both templates."""

import json
import random
from pathlib import Path

from data_corpora import words

from titan_recipes.trainer.data.chat import TEMPLATES

SPECIAL = sorted(
    {
        name
        for template in TEMPLATES.values()
        for name in (template.begin, template.open, template.close, template.end)
        if name
    }
)
VOCAB_SIZE = 320


def write_tokenizer(path: Path, special: list[str] = SPECIAL) -> Path:
    """A byte-level tokenizer.json; some merges and the special tokens follow the 256 bytes."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - len(special),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([words(0, 500)], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def conversation(seed: int, *, turns: int = 2, count: int = 6) -> list[dict[str, str]]:
    """Question and answer in turn, made of words, the same for the same seed."""
    drawn = random.Random(seed)
    roles = ("user", "assistant")
    return [
        {"role": roles[i % 2], "content": words(drawn.randint(0, 10**9), drawn.randint(1, count))}
        for i in range(turns)
    ]


def write_chat(path: Path, rows: int, *, seed: int = 0, count: int = 6) -> Path:
    """A jsonl file of conversations of one or two questions."""
    drawn = random.Random(seed)
    lines = (
        json.dumps({"messages": conversation(seed + i, turns=drawn.choice((2, 4)), count=count)})
        for i in range(rows)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
