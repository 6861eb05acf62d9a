"""Where recipes are: a path, ./recipes, $TITAN_RECIPES_PATH, then those that come with the package.

The directory listing is the registry: any directory with a recipe.toml in one of these places is a
recipe, and the first of a name wins. `name@version` asks for one version, wherever it is.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from titan_recipes.bundle.bundle import FILES, Bundle, natural_order
from titan_recipes.config.data_root import data_root
from titan_recipes.config.home import expanded
from titan_recipes.config.load import did_you_mean, read_toml
from titan_recipes.errors import BundleError, ConfigError


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the listing: what recipe.toml says, or why the recipe is broken."""

    bundle: Bundle
    version: str = ""
    summary: str = ""
    tags: tuple[str, ...] = ()
    deprecated: str = ""
    broken: str = ""


def search_places() -> list[Path]:
    """The directories that hold recipes, in search order."""
    listed = os.environ.get("TITAN_RECIPES_PATH", "").split(os.pathsep)
    return [
        Path("recipes"),
        *(expanded(part) for part in listed if part),
        data_root() / "recipes",
    ]


def _bundles() -> Iterator[Bundle]:
    """Every bundle of every place in search order, those shadowed by an earlier one included."""
    seen: set[Path] = set()
    for place in search_places():
        resolved = Path(os.path.realpath(place))  # resolve() raises for a loop of links
        if resolved in seen or not os.path.isdir(place):
            continue
        seen.add(resolved)
        try:
            found = sorted(place.iterdir())
        except OSError as error:
            raise BundleError(f"{place}: can't be listed: {error.strerror}") from error
        yield from (Bundle(path) for path in found if _may_be_recipe(path))


def _may_be_recipe(path: Path) -> bool:
    """Whether a recipe.toml is there, or can't be looked for: reading it will tell why."""
    try:
        return not path.name.startswith(".") and (path / "recipe.toml").is_file()
    except OSError:
        return True


def find_bundle(name_or_path: str) -> Bundle:
    """The bundle of a path, a name, or `name@version`.

    Raises BundleError saying where it looked, what is there, and which versions there are.
    """
    name, _, version = name_or_path.partition("@")
    path = expanded(name_or_path)
    if os.sep in name_or_path or os.path.isfile(path / "recipe.toml"):
        if not os.path.isfile(path / "recipe.toml"):
            what = "no recipe.toml in it" if os.path.isdir(path) else "no such directory"
            raise BundleError(f"{name_or_path}: {what}; give a recipe's name or its directory")
        return Bundle(Path(os.path.abspath(path)))
    found = list(_bundles())
    named = [bundle for bundle in found if bundle.name == name]
    if not named:
        places = {os.path.realpath(place): str(place) for place in reversed(search_places())}
        looked = ", ".join(reversed(places.values()))
        names = sorted({bundle.name for bundle in found}, key=natural_order)
        hint = did_you_mean(name, names) or f"there are {', '.join(names) or 'none'}"
        raise BundleError(f'no recipe "{name}" in {looked}; {hint}')
    if not version:
        return named[0]
    for bundle in named:
        if bundle.version == version:
            return bundle
    versions = ", ".join(f"{b.version or 'none'} ({b.where()})" for b in named)
    raise BundleError(f'recipe "{name}" has no version {version}; versions there: {versions}')


def list_bundles() -> list[Listed]:
    """Every recipe that `find_bundle` would find by name, sorted; a broken one says why it is."""
    first: dict[str, Bundle] = {}
    for bundle in _bundles():
        first.setdefault(bundle.name, bundle)
    return [_listed(first[name]) for name in sorted(first, key=natural_order)]


def _listed(bundle: Bundle) -> Listed:
    """Parse every file, and read recipe.toml by hand: schema and pydantic would cost far more."""
    try:
        recipe = bundle.recipe()
        for file in (*FILES[1:], *(f"plans/{plan}.toml" for plan in bundle.plans())):
            read_toml(Path(bundle.where(file)))
    except ConfigError as error:
        return Listed(bundle, broken=str(error))
    texts = {key: recipe.get(key, "") for key in ("name", "version", "summary", "deprecated")}
    tags = recipe.get("tags", [])
    wrong = [key for key, text in texts.items() if not isinstance(text, str)]
    missing = [key for key in ("name", "version", "summary", "default_plan") if key not in recipe]
    where = bundle.where("recipe.toml")
    if missing or wrong or not isinstance(tags, list):
        key, got = (missing[0], "missing") if missing else ((wrong or ["tags"])[0], "wrong type")
        return Listed(bundle, broken=f"{where}: recipe.{key}: {got}")
    if texts["name"] != bundle.name:
        got = f'"{texts["name"]}", but the directory is "{bundle.name}"'
        return Listed(bundle, broken=f"{where}: recipe.name: {got}")
    return Listed(
        bundle,
        version=texts["version"],
        summary=texts["summary"],
        tags=tuple(map(str, cast(list[Any], tags))),
        deprecated=texts["deprecated"],
    )
