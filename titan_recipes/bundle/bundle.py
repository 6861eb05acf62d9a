"""One bundle: the files of a recipe directory, their digest, and the layers they make.

    recipe.toml   [recipe] [assets]        what it is, and what it needs from elsewhere
    model.toml    [model]                  the architecture
    train.toml    everything else          only what differs from the schema's defaults
    plans/*.toml  [plan] [expect], and any section of train.toml for this hardware

A bundle is data: Python files are refused. Each section has one home, so that a reader knows where
to look; a section elsewhere is an error that names its home. What the values mean is checked by
`titan_recipes.config.resolve`, which gets the layers from here.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from titan_recipes import __version__
from titan_recipes.config.data_root import data_root
from titan_recipes.config.load import Layer, did_you_mean, read_toml
from titan_recipes.errors import BundleError, ConfigError, Problem

if TYPE_CHECKING:
    from titan_recipes.config.cluster import Cluster
    from titan_recipes.config.resolve import Resolution

PLAN_FILE = "plans/<plan>.toml"
HOME_OF = {
    "recipe": "recipe.toml",
    "assets": "recipe.toml",
    "model": "model.toml",
    "plan": PLAN_FILE,
    "expect": PLAN_FILE,
}
"""The file of each section that has a fixed one; all others belong in train.toml or a plan."""

PLAN_MODEL_KEYS = ("converters", "print_after_conversion")
"""The keys of [model] that a plan may set: they say how to compute it, not what it is."""

FILES = ("recipe.toml", "model.toml", "train.toml")
SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_EDITOR_BACKUPS = ("~", ".bak", ".orig", ".rej", ".swp", ".tmp")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A recipe directory. Nothing is read before it is asked for."""

    path: Path

    @property
    def name(self) -> str:
        """The directory's name, which is the recipe's."""
        return self.path.name

    @property
    def is_packaged(self) -> bool:
        """Whether it came with titan-recipes."""
        return self.path.parent.resolve() == (data_root() / "recipes").resolve()

    def where(self, file: str = "") -> str:
        """A file of the bundle as messages name it: relative to the working directory if below."""
        path = Path(os.path.abspath(self.path / file))
        cwd = Path.cwd()
        return str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)

    def recipe(self) -> dict[str, Any]:
        """[recipe] as written, not validated. Raises ConfigError where the file can't be read."""
        return _table(read_toml(Path(self.where("recipe.toml"))), "recipe")

    @property
    def version(self) -> str:
        """recipe.version as written; "" where there is none."""
        return str(self.recipe().get("version", ""))

    @property
    def default_plan(self) -> str:
        """recipe.default_plan as written; "" where there is none."""
        return str(self.recipe().get("default_plan", ""))

    def plans(self) -> list[str]:
        """The names of the plans, h100x8 before h100x64."""
        found = (self.path / "plans").glob("*.toml")
        return sorted((path.stem for path in found if not _is_ignored(path)), key=natural_order)

    def files(self) -> list[str]:
        """Relative names of all files that make the bundle, sorted, with "/" between parts.

        Hidden files, editors' backups and __pycache__ are left out. Raises BundleError.
        """
        try:
            found = [path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file()]
        except OSError as error:
            raise BundleError(f"{self.where()}: can't be read: {error.strerror}") from error
        return sorted(path.as_posix() for path in found if not _is_ignored(path))

    def digest(self) -> str:
        """sha256, hexadecimal, over each file's name and content in sorted order."""
        total = hashlib.sha256()
        for name in self.files():
            try:
                content = (self.path / name).read_bytes()
            except OSError as error:
                raise BundleError(f"{self.where(name)}: can't be read: {error.strerror}") from error
            total.update(f"{name}\0{len(content)}\0".encode())
            total.update(content)
        return total.hexdigest()

    def layers(self, plan: str = "") -> list[Layer]:
        """recipe.toml, model.toml, train.toml and the plan ("" = the default one), in this order.

        Raises ConfigError with every problem of the files themselves: missing, unreadable, Python,
        sections in the wrong file, a name, version or `requires` that does not fit.
        """
        problems = list(self._stray_files())
        layers: list[Layer] = []
        for file in FILES:
            if (layer := self._read(file, problems)) is not None:
                layers.append(layer)
        recipe: Mapping[str, Any] = layers[0].data if layers else {}
        problems += self._identity_problems(recipe)
        if plan and plan not in self.plans():
            problems.append(self._unknown_plan("plans", "", plan))
        plan = plan or _text(recipe, "default_plan")
        if plan in self.plans() and (layer := self._read(f"plans/{plan}.toml", problems)):
            layers.append(layer)
        for layer in layers:
            problems += _misplaced(layer)
        if problems:
            raise ConfigError(problems)
        return layers

    def resolve(
        self,
        plan: str = "",
        *,
        overrides: Sequence[str] = (),
        cluster: "Cluster | None" = None,
        cluster_name: str = "",
    ) -> "Resolution":
        """The bundle with one plan ("" = the default one) as a job. Raises ConfigError."""
        from titan_recipes.config.resolve import resolve

        return resolve(
            self.layers(plan),
            digest=self.digest(),
            bundle="" if self.is_packaged else str(self.path.resolve()),
            plan=plan or self.default_plan,
            overrides=overrides,
            cluster=cluster,
            cluster_name=cluster_name,
        )

    def _read(self, file: str, problems: list[Problem]) -> Layer | None:
        where = self.where(file)
        try:
            return Layer(where, read_toml(Path(where)))
        except ConfigError as error:
            problems += error.problems
            return None

    def _unknown_plan(self, file: str, key: str, plan: str) -> Problem:
        known = self.plans()
        cure = did_you_mean(plan, known) or f"plans there: {', '.join(known) or 'none'}"
        return Problem(self.where(file), key, f'no plan "{plan}"', cure)

    def _stray_files(self) -> Iterator[Problem]:
        """Files that would be taken for a part of the recipe, but are none."""
        for name in self.files():
            if name.endswith((".py", ".pyc", ".so")):
                cure = "remove it: a bundle is data only"
                yield Problem(self.where(name), "", "Python in a bundle", cure)
            elif "/" not in name and name.endswith(".toml") and name not in FILES:
                cure = did_you_mean(name, FILES) or f"use {', '.join(FILES)} or plans/"
                yield Problem(self.where(name), "", "not a file of a bundle", cure)

    def _identity_problems(self, data: Mapping[str, Any]) -> Iterator[Problem]:
        """Whether name, version and `requires` fit; their types are the schema's to check."""
        where = self.where("recipe.toml")
        name, version, requires = (_text(data, key) for key in ("name", "version", "requires"))
        if name and name != self.name:
            got = f'"{name}", but the directory is "{self.name}"'
            yield Problem(where, "recipe.name", got, f'write name = "{self.name}", or rename one')
        elif name and not NAME.fullmatch(name):
            cure = 'use letters, digits, "_", "-", "."; a letter or digit first'
            yield Problem(where, "recipe.name", f'got "{name}"', cure)
        if version and not SEMVER.fullmatch(version):
            cure = 'write MAJOR.MINOR.PATCH, like "1.2.0"'
            yield Problem(where, "recipe.version", f'got "{version}"', cure)
        default_plan = _text(data, "default_plan")
        if default_plan and default_plan not in self.plans():
            yield self._unknown_plan("recipe.toml", "recipe.default_plan", default_plan)
        if not requires:
            return
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            fits = SpecifierSet(requires).contains(__version__, prereleases=True)
        except InvalidSpecifier:
            cure = 'write a version specifier, like ">=0.1,<1"'
            yield Problem(where, "recipe.requires", f'got "{requires}"', cure)
            return
        if not fits:
            got = f'"{requires}", but this is titan-recipes {__version__}'
            cure = f'pip install "titan-recipes{requires}", or take another version of the recipe'
            yield Problem(where, "recipe.requires", got, cure)


def natural_order(name: str) -> list[tuple[str, int]]:
    """A sort key that takes runs of digits as numbers."""
    return [(text, int(part or 0)) for text, part in re.findall(r"(\D*)(\d*)", name)]


def _is_ignored(path: Path) -> bool:
    parts = path.parts if not path.is_absolute() else (path.name,)
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return hidden or path.name.endswith(_EDITOR_BACKUPS) or path.name.startswith("#")


def _table(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The table under `key`, empty where there is none or something else."""
    value = data.get(key)
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _text(data: Mapping[str, Any], key: str) -> str:
    """recipe.`key` where it is text, else ""."""
    value = _table(data, "recipe").get(key)
    return value if isinstance(value, str) else ""


def _misplaced(layer: Layer) -> Iterator[Problem]:
    """Sections, and keys of [model] in a plan, that have another home than this layer's file."""
    # Imported here, since a listing needs no schema.
    from titan_recipes.config.schema import Config

    file = Path(layer.where)
    in_plan = file.parent.name == "plans"
    homes = (PLAN_FILE, "train.toml") if in_plan else (file.name,)
    for section in layer.data:
        home = HOME_OF.get(section, "train.toml")
        # A name that is no section at all gets the schema's own did-you-mean.
        if home in homes or section not in Config.__dataclass_fields__:
            continue
        if not (in_plan and section == "model"):
            yield Problem(layer.where, section, "does not belong here", f"move it to {home}")
            continue
        for key in _table(layer.data, section):
            if key not in PLAN_MODEL_KEYS:
                yield Problem(layer.where, f"model.{key}", "not in a plan", f"move it to {home}")
