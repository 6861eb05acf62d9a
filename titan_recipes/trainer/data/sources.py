"""Sources: a dataset's name becomes the files that hold its text.

Every dataset has a training part and a held-out one, `NAME` and `NAME_validation`. To add one,
name it in `config.datasets`, write a function from `Place` to files and put it in `FILES_OF`. Hub
datasets end here as files too: the arrow files of the `datasets` cache.
"""

import hashlib
import itertools
import os
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from titan_recipes.config.datasets import VALIDATION, dataset_problem
from titan_recipes.config.home import expanded
from titan_recipes.config.schema import DataSource
from titan_recipes.errors import ConfigError, DataError, Problem
from titan_recipes.trainer.data.documents import (
    COMPRESSED_SUFFIXES,
    JSON_SUFFIXES,
    TABLE_SUFFIXES,
    TextFile,
)

C4 = "allenai/c4"
STDLIB_HOLDOUT = 50
"""One file in this many of the standard library is held out for validation."""
HASHED_BYTES = 256 * 2**20
"""Sources up to this size are identified by their content, which takes 0.2 s a launch at most."""

_TEXT_SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, ".txt")
# Tests and vendored archives are not what people mean by the library; _sysconfigdata holds paths.
_NOT_STDLIB = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "_bundled",
    "turtledemo",
}  # fmt: skip
_NOT_STDLIB_PREFIXES = ("config-", "_sysconfigdata")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a dataset is asked for.

    key: the configuration key that says so, for messages. path: "" = the dataset's own place; for
    "stdlib" a package of the library; relative ones start at the bundle if they exist there, else
    at the working directory.
    """

    key: str
    path: str
    bundle: Path
    validation: bool

    def error(self, got: str, cure: str) -> ConfigError:
        return ConfigError([Problem("train.toml", self.key, got, cure)])

    def locate(self) -> str:
        """The path or glob, made absolute. Raises ConfigError where it can't be looked at."""
        given = expanded(self.path)
        in_bundle = self.bundle / given
        try:
            if in_bundle.exists() or glob(str(in_bundle), recursive=True):
                return str(in_bundle.absolute())
        except PermissionError as error:  # as another user, in a container
            cure = f"let user {os.geteuid()} read it, and enter the folders above"
            raise self.error(f"{in_bundle}: {error.strerror}", cure) from error
        return str(given.absolute())


@dataclass(frozen=True, slots=True)
class Source:
    """Text to tokenize: files in their stored order."""

    dataset: str
    text_key: str
    files: tuple[TextFile, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def identity(self) -> str:
        """sha256, in hex, that changes when the text does.

        Over the name, size and content of each file up to HASHED_BYTES in all; above, where reading
        all would delay every launch, over absolute path, size and time of change: a corpus that was
        moved or touched is then tokenized again rather than mistaken for another.
        """
        digest = hashlib.sha256(f"{self.dataset}\n{self.text_key}\n".encode())
        hashed = self.num_bytes <= HASHED_BYTES
        for file in self.files:
            try:
                if hashed:
                    content = hashlib.sha256(file.path.read_bytes()).hexdigest()
                    line = f"{file.name}\0{file.size}\0{content}\n"
                else:
                    line = f"{file.path}\0{file.size}\0{file.path.stat().st_mtime_ns}\n"
            except OSError as error:
                raise DataError(f"{file.path}: can't be read: {error.strerror}") from error
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()


def open_source(asked: DataSource, *, key: str, text_key: str, bundle: Path) -> Source:
    """The source that a [[data.sources]] entry, or training.dataset, means. Raises ConfigError.

    key: where the entry is in the configuration, as in "training" or "data.sources.0".
    """
    if problem := dataset_problem(asked.dataset, asked.path, key, "train.toml"):
        raise ConfigError([problem])
    name = asked.dataset.removesuffix(VALIDATION)
    path_key = f"{key}.path" if key.startswith("data.sources") else f"{key}.dataset_path"
    place = Place(path_key, asked.path, bundle, asked.dataset.endswith(VALIDATION))
    return Source(asked.dataset, text_key, tuple(FILES_OF[name](place)))


def text_file(path: Path, root: Path) -> TextFile:
    """A TextFile named relative to `root`."""
    try:
        return TextFile(path, path.relative_to(root).as_posix(), path.stat().st_size)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error


def stdlib_files() -> list[TextFile]:
    """Python's own library on this machine, sorted; without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for directory, names, files in os.walk(root):
        names[:] = [
            n for n in names if n not in _NOT_STDLIB and not n.startswith(_NOT_STDLIB_PREFIXES)
        ]
        found += [
            Path(directory, file)
            for file in files
            if file.endswith(".py") and not file.startswith(_NOT_STDLIB_PREFIXES)
        ]
    return [text_file(path, root) for path in sorted(found)]


def _held_out(file: TextFile) -> bool:
    return (
        int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:8], "big") % STDLIB_HOLDOUT == 0
    )


def _stdlib(place: Place) -> list[TextFile]:
    part = place.path.rstrip("/")
    wanted = [f for f in stdlib_files() if not part or f"{f.name}/".startswith(f"{part}/")]
    files = [file for file in wanted if _held_out(file) == place.validation]
    if not files:
        root = Path(sysconfig.get_path("stdlib"), part)
        cure = 'name a package of the library ("asyncio"), or leave it "" for all'
        raise place.error(f"no {'held-out ' * place.validation}Python sources in {root}", cure)
    return files


def _is_text(path: Path) -> bool:
    inner = path.with_suffix("") if path.suffix in COMPRESSED_SUFFIXES else path
    return inner.suffix in _TEXT_SUFFIXES


def _local(place: Place, patterns: Iterable[str] = ()) -> list[TextFile]:
    """The files below place.path; in a directory those of the first pattern that matches any."""
    where = place.locate()
    root = Path(where)
    if root.is_dir():
        for pattern in patterns:
            matching = sorted(root.glob(pattern))
            if matching:
                return [text_file(path, root) for path in matching]
        paths = sorted(path for path in root.rglob("*") if path.is_file() and _is_text(path))
        got = f"no text in the directory {root} ({', '.join(_TEXT_SUFFIXES)}, also .gz or .zst)"
    elif root.exists():
        root, paths, got = root.parent, [root], ""
    else:
        paths = sorted(Path(p) for p in glob(where, recursive=True) if Path(p).is_file())
        root = Path(*itertools.takewhile(lambda part: not has_magic(part), root.parts))
        got = f"no file matches {where}" if has_magic(where) else f"{where} does not exist"
    if not paths:
        raise place.error(got, "give a file, a directory or a glob of jsonl, parquet or txt")
    return [text_file(path, root) for path in paths]


def _chat(place: Place) -> list[TextFile]:
    """The rows below place.path; plain text holds no conversations."""
    files = [file for file in _local(place) if file.kind != "text"]
    if not files:
        got = f"no rows in {place.locate()}, only text"
        raise place.error(got, "give a file, a directory or a glob of jsonl or parquet")
    return files


def c4_files(place: Place) -> list[TextFile]:
    """The shards of C4 in a local directory that place.path names, else out of the hub's cache."""
    part = "validation" if place.validation else "train"
    names = f"c4-{part}.*.json.gz"
    if place.path:
        return _local(place, (f"en/{names}", names))
    # data_files keeps `datasets` from downloading the other parts of C4 as well.
    return _hub_files(place, C4, part, data_files={part: f"en/{names}"})


def _hub(place: Place) -> list[TextFile]:
    repository = hub_repository(place)
    return _hub_files(place, repository, "validation" if place.validation else "train")


def hub_repository(place: Place) -> str:
    """The repository, or local directory of a dataset, that a "hub" source names."""
    where = place.locate()
    return where if Path(where).exists() else place.path


def load_hub(place: Place, repository: str, split: str, **options: Any) -> Any:
    """One split by `datasets.load_dataset`, or `load_from_disk` where that wrote it.

    Raises ConfigError with the first line of whatever `datasets` says.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    directory = Path(repository)
    try:
        if not any((directory / name).exists() for name in ("dataset_dict.json", "state.json")):
            return datasets.load_dataset(repository, split=split, **options)
        made = datasets.load_from_disk(repository)
        made = made[split] if isinstance(made, datasets.DatasetDict) else made
        return made.to_iterable_dataset() if options.get("streaming") else made
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        got = f"{repository}, split {split!r}, can't be loaded: {reason}"
        raise place.error(got, "check its name, its splits and the network") from error


def _hub_files(place: Place, repository: str, split: str, **options: Any) -> list[TextFile]:
    made = load_hub(place, repository, split, **options)
    paths = [Path(entry["filename"]) for entry in made.cache_files]
    if not paths:
        raise place.error(f"{repository}, split {split!r}, is empty", "name another dataset")
    return [text_file(path, path.parent) for path in paths]


FILES_OF: dict[str, Callable[[Place], list[TextFile]]] = {
    "stdlib": _stdlib,
    "text": _local,
    "chat": _chat,
    "c4": c4_files,
    "c4_test": _local,
    "hub": _hub,
}
