"""Forks: copies of a bundle that remember where they came from, to be compared and upgraded.

    my_8b/
      recipe.toml ...         yours to edit
      .origin/origin.toml     name, version, digest and source of what was forked
      .origin/files/          its files, as they were: the base of `diff` and `upgrade`, offline

Hidden names are outside of the digest: two equal directories are the same recipe, whatever their
history.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tomli_w

from titan_recipes.bundle.bundle import NAME, Bundle
from titan_recipes.bundle.merge import Change, Files, Merged, Prefer, changes, merge3, unified_diff
from titan_recipes.config.data_root import data_root
from titan_recipes.config.home import expanded
from titan_recipes.config.load import read_section, read_toml
from titan_recipes.config.schema import section
from titan_recipes.errors import BundleError, ConfigError, Problem

ORIGIN = ".origin"
RECORD = f"{ORIGIN}/origin.toml"
COPY = f"{ORIGIN}/files"


@section
class ForkedFrom:
    """origin.toml: what a bundle was forked from."""

    name: str
    """The origin's name."""
    version: str
    """Its version then."""
    digest: str
    """Its digest then."""
    source: str
    """Its directory; "" = it came with titan-recipes."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A finished or proposed upgrade. written: whether the fork was changed."""

    before: str
    after: str
    merged: Merged
    written: bool


def fork(bundle: Bundle, target: str) -> Bundle:
    """Copy a bundle to ./recipes/<target>, or to a path. Raises BundleError; overwrites nothing."""
    folder = expanded(target) if os.sep in target else Path("recipes") / target
    folder = Path(os.path.abspath(folder))
    if not NAME.fullmatch(folder.name):
        raise BundleError(f'"{folder.name}" is no recipe name; use letters, digits, "_", "-", "."')
    if str(expanded(target)).startswith("~"):
        raise BundleError(f"{target}: no such home directory; write the path in full")
    if os.path.lexists(folder):
        raise BundleError(f"{folder} exists; choose another name, or remove it first")
    files = read_files(bundle)
    if not isinstance(read_toml(bundle.path / "recipe.toml").get("recipe", {}), dict):
        where = bundle.where("recipe.toml")
        raise ConfigError([Problem(where, "recipe", "not a table", "write it as [recipe]")])
    record = ForkedFrom(
        name=bundle.name,
        version=bundle.version,
        digest=bundle.digest(),
        source="" if bundle.is_packaged else str(bundle.path.resolve()),
    )
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        write_files(scratch, files)
        _remember(scratch / ORIGIN, files, record)
        _rename(scratch / "recipe.toml", folder.name)
        scratch.rename(folder)
    except OSError as error:
        raise BundleError(f"{folder}: can't be written: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Bundle(folder)


def forked_from(bundle: Bundle) -> ForkedFrom:
    """The record of a fork. Raises BundleError where the bundle is none."""
    path = bundle.path / RECORD
    if not path.is_file():
        cure = f"`titan-recipes fork {bundle.name} NEW_NAME` makes one"
        raise BundleError(f"{bundle.where()}: not a fork, it has no {RECORD}; {cure}")
    return read_section(ForkedFrom, read_toml(path), bundle.where(RECORD))


def compare(bundle: Bundle) -> tuple[list[Change], str]:
    """(what a fork changed, by key; the same as a unified diff). Raises BundleError."""
    record = forked_from(bundle)
    base, mine = _base(bundle), read_files(bundle)
    names = (f"{record.name}@{record.version}", bundle.name)
    return changes(base, mine), unified_diff(base, mine, names)


def newest_origin(record: ForkedFrom) -> Bundle:
    """The origin as it is now. Raises BundleError where it is gone."""
    origin = Bundle(Path(record.source) if record.source else data_root() / "recipes" / record.name)
    if not (origin.path / "recipe.toml").is_file():
        where = record.source or "the packaged recipes"
        raise BundleError(f'the origin "{record.name}" is gone from {where}; the fork works alone')
    return origin


def upgrade(bundle: Bundle, *, prefer: Prefer = "", dry_run: bool = False) -> Upgrade:
    """Bring the origin's changes since the fork into it.

    Nothing is written where a conflict is left, or under dry_run. Raises BundleError, ConfigError.
    """
    record = forked_from(bundle)
    origin = newest_origin(record)
    theirs = read_files(origin)
    merged = merge3(_base(bundle), read_files(bundle), theirs, prefer)
    moved = origin.digest() != record.digest
    write = moved and not merged.conflicts and not dry_run
    if write:
        try:
            write_files(bundle.path, merged.files)
            # The base moves last: an upgrade cut short before this merges again without conflicts.
            _replace_origin(bundle, theirs, origin)
        except OSError as error:
            raise BundleError(f"{bundle.where()}: can't be written: {error.strerror}") from error
    return Upgrade(record.version, origin.version, merged, write)


def read_files(bundle: Bundle) -> dict[str, bytes]:
    """Every file of the bundle. Raises BundleError."""
    try:
        return {name: (bundle.path / name).read_bytes() for name in bundle.files()}
    except OSError as error:
        raise BundleError(f"{bundle.where()}: can't be read: {error}") from error


def write_files(folder: Path, files: Mapping[str, bytes] | Mapping[str, bytes | None]) -> None:
    """Write files below a folder; None deletes one."""
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _remember(folder: Path, files: Files, record: ForkedFrom) -> None:
    """Write what `_base` and `forked_from` read."""
    write_files(folder / "files", files)
    (folder / "origin.toml").write_text(tomli_w.dumps(asdict(record)), encoding="utf-8")


def _replace_origin(bundle: Bundle, files: Files, origin: Bundle) -> None:
    record = replace(forked_from(bundle), version=origin.version, digest=origin.digest())
    new, old = bundle.path / f"{ORIGIN}.new", bundle.path / f"{ORIGIN}.old"
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    _remember(new, files, record)
    (bundle.path / ORIGIN).rename(old)
    new.rename(bundle.path / ORIGIN)
    shutil.rmtree(old)


def _base(bundle: Bundle) -> Files:
    copy = Bundle(bundle.path / COPY)
    if not copy.path.is_dir() or copy.digest() != forked_from(bundle).digest:
        cure = "fork the origin again and copy your changes over"
        raise BundleError(f"{bundle.where(COPY)}: not the origin as it was forked; {cure}")
    return read_files(copy)


def _rename(recipe_toml: Path, name: str) -> None:
    """Set recipe.name, the rest of the text left as it is."""
    import tomlkit

    document = tomlkit.parse(recipe_toml.read_bytes().decode("utf-8-sig"))
    document.setdefault("recipe", tomlkit.table())["name"] = name
    recipe_toml.write_text(tomlkit.dumps(document), encoding="utf-8")
