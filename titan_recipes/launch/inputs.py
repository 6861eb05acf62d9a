"""What a job reads from this machine: its tokenizer and its text, looked at before a launch.

Only what costs no time: that files are there, and that the text could fill a batch. Reading them,
and asking a hub over the network, is the trainer's, which refuses the rest with the same words.
"""

import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from glob import glob
from itertools import islice
from pathlib import Path

from titan_recipes.config.data_root import data_root
from titan_recipes.config.datasets import VALIDATION, Asked, WhereOf, asked_datasets
from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job
from titan_recipes.errors import Problem

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model")
"""Looked for in a directory that is named as the tokenizer."""
TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".txt")
PLAIN_SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt")
COMPRESSED_SUFFIXES = (".gz", ".zst")
MOST_FILES = 1000
"""More files than this are taken to hold enough text: to ask for their sizes would take a while."""


def bundle_directory(job: Job) -> Path:
    """The directory of the job's recipe, where its relative paths start."""
    if job.origin.bundle:
        return Path(job.origin.bundle)
    return data_root() / "recipes" / job.recipe.name


def input_problems(job: Job, where_of: WhereOf) -> Iterator[Problem]:
    """What the job reads and is not here. where_of: dotted key -> what set it."""
    bundle, checkpoint = bundle_directory(job), job.checkpoint
    tokenizers = {
        "model.tokenizer_path": job.model.tokenizer_path,
        "model.hf_assets_path": job.model.hf_assets_path,
        "assets.tokenizer": job.assets.tokenizer,
    }
    key = next((key for key, value in tokenizers.items() if value), "assets.tokenizer")
    if got := _or_unreadable(lambda: _tokenizer_wrong(tokenizers[key], bundle)):
        yield Problem(where_of(key), key, got, _tokenizer_cure(job.assets.hf_repo))
    for asked in [] if job.data.streaming else asked_datasets(job):
        set_by = asked.path_key if asked.path else f"{asked.key}.dataset"
        if asked.key.startswith("data."):
            set_by = "data.sources"  # an array is set as a whole
        if got := _or_unreadable(partial(_text_wrong, asked, job, bundle)):
            yield Problem(where_of(set_by), asked.path_key, got, _text_cure(asked))
    initial, key = checkpoint.initial_load_path, "checkpoint.initial_load_path"
    if checkpoint.enable and initial:
        path = expanded(initial).absolute()
        if got := _or_unreadable(lambda: "" if path.is_dir() else f"{path} does not exist"):
            yield Problem(where_of(key), key, got, "give a checkpoint or a run directory")


def _or_unreadable(wrong: Callable[[], str]) -> str:
    """What is wrong, which may be that the system does not let one look."""
    try:
        return wrong()
    except OSError as error:
        return f"{error.filename} can't be read: {error.strerror}"


def _tokenizer_wrong(named: str, bundle: Path) -> str:
    if not named:
        return "no tokenizer is named"
    path = bundle / expanded(named)
    if path.is_file() or any((path / name).is_file() for name in TOKENIZER_FILES):
        return ""
    if not path.is_dir():
        return f"{path} does not exist"
    return f"no tokenizer in the directory {path} (looked for {', '.join(TOKENIZER_FILES)})"


def _tokenizer_cure(repo: str) -> str:
    if not repo:
        return "set it to a tokenizer file or its directory"
    download = f"hf download {repo} --include '*tokenizer*' --local-dir DIR"
    return f"get it with `{download}`, then launch with `--set assets.tokenizer=DIR`"


def _text_wrong(asked: Asked, job: Job, bundle: Path) -> str:
    files, got = _text_files(asked, bundle)
    if got or asked.key != "training":
        return got
    # How conversations fill windows is known once they are packed.
    return "" if asked.is_chat else _too_little(job, files)


def _text_cure(asked: Asked) -> str:
    if asked.dataset.removesuffix(VALIDATION) == "stdlib":
        return 'name a package of the library ("asyncio"), or leave it "" for all'
    return "give a file, a directory or a glob of jsonl, parquet or txt"


def _text_files(asked: Asked, bundle: Path) -> tuple[list[Path], str]:
    """(files of a dataset that lies here, what is wrong); ([], "") = not looked at."""
    name, path = asked.dataset.removesuffix(VALIDATION), asked.path
    if name == "stdlib":
        root = Path(sysconfig.get_path("stdlib"), path)
        found = [root] if root.is_file() else _first_files(root, (".py",))
        return found, "" if found else f"no Python sources in {root}"
    if not path or name == "hub":  # from the hub, or from its cache on this disk
        return [], ""
    where = bundle / expanded(path)
    if not where.exists() and not glob(str(where), recursive=True):
        where = expanded(path).absolute()
    if where.is_dir():
        found = _first_files(where, TEXT_SUFFIXES)
        got = f"no text in the directory {where} ({', '.join(TEXT_SUFFIXES)}, also .gz or .zst)"
        return found, "" if found else got
    if where.exists():
        return [where], ""
    matching = [Path(match) for match in glob(str(where), recursive=True)]
    files = [match for match in matching if match.is_file()]
    got = f"no file matches {where}" if set("*?[") & set(str(where)) else f"{where} does not exist"
    return files, "" if files else got


def _first_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below a directory that end so, compressed ones too; at most MOST_FILES + 1."""
    found = (path for path in root.rglob("*") if _kind(path) in suffixes and path.is_file())
    return list(islice(found, MOST_FILES + 1))


def _kind(path: Path) -> str:
    """The suffix that says what a file holds; a compressed one's without the last."""
    return (path.with_suffix("") if path.suffix in COMPRESSED_SUFFIXES else path).suffix


def _too_little(job: Job, files: list[Path]) -> str:
    """What is wrong where the text has fewer bytes than one batch has tokens.

    A token is at least a byte of text, and each file adds its first and last token. Compressed
    files and tables may hold more than their size.
    """
    plain = all(file.suffix in (*PLAIN_SUFFIXES, ".py") for file in files)
    if not files or not plain or len(files) > MOST_FILES:
        return ""
    needed = job.derived.global_batch_size * job.training.seq_len + 1
    held = sum(file.stat().st_size + 2 for file in files)
    if held >= needed:
        return ""
    batch = (
        f"global_batch_size {job.derived.global_batch_size:,} x seq_len {job.training.seq_len:,}"
    )
    return f"too little text: at most {held:,} tokens, one batch over all ranks is {batch} + 1"
