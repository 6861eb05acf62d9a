"""What lies beside exported weights: the tokenizer's files, token ids, generation_config.json.

They are taken from where the job has them: the folder it began from, or its tokenizer's.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.data.tokenizer import load_tokenizer, resolve_tokenizer_path
from titan_recipes.trainer.hf.config import CONFIG, read_config

GENERATION_CONFIG = "generation_config.json"

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_KEPT = (
    *_TOKEN_IDS,
    "max_position_embeddings",
    "initializer_range",
    "attention_dropout",
    "router_aux_loss_coef",
)
"""Keys of a config.json that are not the decoder's numbers and outlive training."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class Beside:
    """What an export writes besides weights and the model's own numbers."""

    config: dict[str, Any]
    """Further keys of config.json."""
    generation: dict[str, Any]
    """generation_config.json."""
    files: list[Path]
    """Files to copy."""
    notes: list[str]
    """Lines on what is missing."""


def find_beside(job: Job) -> Beside:
    """What the job's assets say. What is not there is noted, and left out."""
    places, notes = _places(job), []
    listed = ([place / name for name in _TOKENIZER_FILES] for place in places)
    present = ([file for file in files if file.is_file()] for files in listed)
    files = next((found for found in present if found), [])
    if not files:
        looked = ", ".join(map(str, places)) or "nowhere"
        notes.append(f"no tokenizer files to copy (looked in {looked})")
    published = next((place for place in places if (place / CONFIG).is_file()), None)
    config: dict[str, Any] = dict.fromkeys(_TOKEN_IDS)
    config["max_position_embeddings"] = _longest(job)
    if published is not None:
        theirs = read_config(published)
        config |= {key: theirs[key] for key in _KEPT if key in theirs}
    elif files:
        tokenizer = load_tokenizer(resolve_tokenizer_path(job))
        config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    generation = {key: config[key] for key in _TOKEN_IDS if config[key] is not None}
    if published is not None and (published / GENERATION_CONFIG).is_file():
        generation = json.loads((published / GENERATION_CONFIG).read_text(encoding="utf-8"))
    return Beside(config, generation, files, notes)


def _places(job: Job) -> list[Path]:
    """Folders that may hold published files, best first."""
    places: list[Path] = []
    if job.checkpoint.initial_load_in_hf:
        places.append(expanded(job.checkpoint.initial_load_path))
    try:
        tokenizer = resolve_tokenizer_path(job)
    except ConfigError:
        return places
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    # Meta publishes its own format in original/, below the files of the common one.
    return [*places, folder.parent, folder] if folder.name == "original" else [*places, folder]


def _longest(job: Job) -> int:
    """The longest sequence that the weights are for, as far as the job says."""
    scaling = job.model.rope_scaling
    stretched = scaling.factor * scaling.original_max_seq_len if scaling else 0
    return max(job.training.seq_len, round(stretched))
