"""A checkpoint on disk, and when it counts. No torch.

    checkpoints/
      step-00000010/             committed: this name appears by one rename, complete
        __0_0.distcp ...         the shards, written by torch.distributed.checkpoint (DCP)
        .metadata                DCP's index of tensors in shards
        manifest.json            step, versions, world size; size and sha256 of each file above
      .step-00000020.saving/     a save under way, or one that was cut off; never loaded
      abandoned-step-00000030/   past the step that training went back to; never loaded by itself

A directory is believed only as far as its manifest goes: a missing, torn, altered or unknown file
makes the whole checkpoint bad, and the one before is taken.
"""

import hashlib
import json
import re
import shutil
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from titan_recipes.config.layout import replace_file, sync_directory
from titan_recipes.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.step-\d{8,}\.(saving|removed)")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file of a checkpoint must be."""

    size: int
    """Bytes."""
    sha256: str
    """Hex digest of the content."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json."""

    step: int
    """Optimizer steps done; 0 = a seed checkpoint."""
    world_size: int
    """Ranks that wrote it."""
    model_only: bool
    """Weights only: nothing to resume from."""
    titan_recipes: str
    """Version that wrote it."""
    torch: str
    """torch's version that wrote it."""
    created: str
    """UTC time of the commit, ISO 8601."""
    files: dict[str, FileRecord]
    """Every file but the manifest, by name."""
    format_version: int = FORMAT_VERSION
    """Version of this format."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(record.size for record in self.files.values())


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint directory, good or bad."""

    step: int
    path: Path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the committed checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def scratch_path(folder: Path, step: int) -> Path:
    """Where a checkpoint is while it is being written."""
    return folder / f".step-{step:08d}.saving"


def list_checkpoints(folder: Path) -> list[Stored]:
    """The checkpoint directories in a folder, newest step first; nothing in them is looked at."""
    if not folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    found = [Stored(int(match[1]), path) for match, path in matches if match]
    return sorted(found, key=lambda stored: stored.step, reverse=True)


def find_checkpoints(directory: Path) -> list[Stored]:
    """The checkpoints meant by a run directory, a checkpoints folder or one checkpoint."""
    name = _NAME.fullmatch(directory.absolute().name)
    if name and directory.is_dir():
        return [Stored(int(name[1]), directory)]
    if (directory / MANIFEST).is_file():
        return [Stored(read_manifest(directory).step, directory)]
    return list_checkpoints(directory) or list_checkpoints(directory / _configured(directory))


def _configured(run: Path) -> str:
    """checkpoint.folder of a run directory."""
    try:
        job = tomllib.loads((run / "job.toml").read_text(encoding="utf-8"))
        return job["checkpoint"]["folder"]
    except (OSError, ValueError, KeyError):
        return "checkpoints"


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a checkpoint directory. Raises CheckpointError with the reason."""
    try:
        data: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = data["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{MANIFEST}: format {version}, this titan-recipes reads {FORMAT_VERSION}"
            )
        data["files"] = {name: FileRecord(**record) for name, record in data["files"].items()}
        return Manifest(**data)
    except FileNotFoundError as error:
        raise CheckpointError(f"{MANIFEST}: missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{MANIFEST}: can't be read ({error})") from error


def check_file(path: Path, name: str, record: FileRecord, *, hash_content: bool = True) -> str:
    """What is wrong with one file of a checkpoint; "" = nothing."""
    try:
        size = (path / name).stat().st_size
        if size != record.size:
            return f"{name}: {size:,} bytes instead of {record.size:,}"
        if not hash_content:
            return ""
        with (path / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{name}: missing"
    except OSError as error:
        return f"{name}: can't be read ({error})"
    return "" if found == record.sha256 else f"{name}: content differs from its sha256"


def check_listing(path: Path, manifest: Manifest) -> list[str]:
    """What is wrong with a checkpoint apart from its files' content and size."""
    problems: list[str] = []
    name = _NAME.fullmatch(path.absolute().name)
    if name and int(name[1]) != manifest.step:
        problems.append(f"{MANIFEST}: of step {manifest.step}, in {path.name}")
    present = {entry.name for entry in path.iterdir() if not entry.name.startswith(".nfs")}
    unknown = sorted(present - manifest.files.keys() - {MANIFEST})
    return problems + [f"{name}: not in {MANIFEST}" for name in unknown]


def verify_checkpoint(path: Path, *, hash_content: bool = True) -> list[str]:
    """Everything wrong with a checkpoint, each naming the bad file; [] = it can be loaded."""
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return [str(error)]
    checks = (
        check_file(path, name, record, hash_content=hash_content)
        for name, record in sorted(manifest.files.items())
    )
    return check_listing(path, manifest) + [problem for problem in checks if problem]


def commit(scratch: Path, manifest: Manifest) -> Path:
    """Turn a scratch directory, whose files are written and synced, into a checkpoint.

    It takes the place of a checkpoint of the same step: one that proved bad, or a full one where
    only the weights are to stay.
    """
    replace_file(scratch / MANIFEST, json.dumps(asdict(manifest), indent=1))
    sync_directory(scratch)
    final = checkpoint_path(scratch.parent, manifest.step)
    aside = _move_aside(final) if final.exists() else None
    scratch.rename(final)
    sync_directory(final.parent)
    if aside is not None:
        shutil.rmtree(aside)
    return final


def remove(path: Path) -> None:
    """Remove a checkpoint; it stops counting at once, whatever happens to its files."""
    shutil.rmtree(_move_aside(path))


def _move_aside(path: Path) -> Path:
    aside = path.with_name(f".{path.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove what cut-off saves and removals left behind; returns the names."""
    if not folder.is_dir():
        return []
    leftovers = sorted(path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name))
    for path in leftovers:
        shutil.rmtree(path)
    return [path.name for path in leftovers]


def set_aside(folder: Path, step: int) -> list[str]:
    """Rename what lies past the step that training goes on from; returns the old names.

    Those are damaged, or of a branch that a person went back from: they may not count as newest
    again, nor push out good ones, and are not ours to delete.
    """
    left = [stored.path for stored in list_checkpoints(folder) if stored.step > step]
    for path in left:
        target = path.with_name(f"abandoned-{path.name}")
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
    return [path.name for path in left]


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest checkpoints after a commit; count: how many stay, 0 = all.

    The newest was committed just now (see `set_aside`), so a good one always stays.
    """
    for stored in list_checkpoints(folder)[count:] if count else ():
        remove(stored.path)
