"""Where recipes are looked for, and what a name, a path and a version find."""

import os
from pathlib import Path

import pytest
from small_recipe import TINY, write

from titan_recipes.bundle.bundle import Bundle
from titan_recipes.bundle.find import find_bundle, list_bundles
from titan_recipes.config.data_root import data_root
from titan_recipes.errors import BundleError

PACKAGED = data_root() / "recipes"


def make(folder: Path, version: str = "1.0.0") -> Path:
    write(folder, TINY | {"plans/p.toml": "[plan]\n"})
    text = f'name = "{folder.name}"\nversion = "{version}"\nsummary = "s"\ndefault_plan = "p"\n'
    (folder / "recipe.toml").write_text(f"[recipe]\n{text}")
    return folder


def message(name: str) -> str:
    with pytest.raises(BundleError) as caught:
        find_bundle(name)
    return str(caught.value)


def test_find_when_name_is_in_every_place_takes_them_in_order(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = make(workplace / "a" / "llama3_8b"), make(workplace / "b" / "llama3_8b")
    assert find_bundle("llama3_8b").path == PACKAGED / "llama3_8b"
    monkeypatch.setenv("TITAN_RECIPES_PATH", f"{first.parent}{os.pathsep}{second.parent}")
    assert find_bundle("llama3_8b").path == first
    make(workplace / "recipes" / "llama3_8b")
    assert find_bundle("llama3_8b").path.resolve() == workplace / "recipes" / "llama3_8b"


def test_find_when_path_is_given_takes_the_directory(workplace: Path):
    made = make(workplace / "somewhere" / "mine")
    assert find_bundle("somewhere/mine").path == made
    assert find_bundle("./somewhere/mine/").path == made
    assert find_bundle(str(made)).path == made
    os.chdir(made.parent)
    assert find_bundle("mine").path == made


def test_find_when_version_is_asked_finds_a_shadowed_one(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
):
    make(workplace / "recipes" / "x", "2.0.0")
    old = make(workplace / "old" / "x", "1.0.0")
    monkeypatch.setenv("TITAN_RECIPES_PATH", "old")
    assert find_bundle("x").version == "2.0.0"
    assert find_bundle("x@1.0.0").path.resolve() == old
    assert message("x@3.0.0") == (
        'recipe "x" has no version 3.0.0; versions there: 2.0.0 (recipes/x), 1.0.0 (old/x)'
    )


def test_find_when_missing_says_where_it_looked(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TITAN_RECIPES_PATH", "shared")
    assert message("llama3_8c") == (
        f'no recipe "llama3_8c" in recipes, shared, {PACKAGED}; did you mean "llama3_8b"?'
    )
    assert message("./nowhere") == (
        "./nowhere: no such directory; give a recipe's name or its directory"
    )
    (workplace / "empty").mkdir()
    assert message("./empty") == (
        "./empty: no recipe.toml in it; give a recipe's name or its directory"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[recipe\n", "not TOML: Expected ']' at the end of a table declaration (at line 1"),
        ('[recipe]\nname = "bad"\n', "recipe.version: missing"),
        ("[recipe]\nname = 1\nversion=''\nsummary=''\ndefault_plan=''", "recipe.name: wrong type"),
        (
            "[recipe]\nname = 'x'\nversion=''\nsummary=''\ndefault_plan=''",
            'recipe.name: "x", but the directory is "bad"',
        ),
    ],
)
def test_list_when_one_is_broken_lists_it_with_its_reason(workplace: Path, text: str, reason: str):
    write(workplace / "recipes" / "bad", TINY | {"recipe.toml": text})
    make(workplace / "recipes" / "good")
    listed = {entry.bundle.name: entry for entry in list_bundles()}
    assert listed["bad"].broken.startswith(f"recipes/bad/recipe.toml: {reason}")
    assert listed["good"].broken == ""
    assert listed["good"].version == "1.0.0"


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("model.toml", "x = [", "not TOML: Invalid value (at end of document)"),
        ("train.toml", "=", "not TOML: Invalid statement (at line 1, column 1)"),
        ("plans/cpu1.toml", "[plan", "not TOML: Expected ']' at the end of a table declaration (at "
         "end of document)"),
        ("train.toml", None, "no such file"),
    ],
)  # fmt: skip
def test_list_when_a_file_of_the_recipe_is_unreadable_lists_it_as_broken(
    tiny: Bundle, file: str, text: str | None, reason: str
):
    if text is None:
        (tiny.path / file).unlink()
    else:
        write(tiny.path, {file: text})
    listed = {entry.bundle.name: entry for entry in list_bundles()}
    assert listed["tiny"].broken == f"recipes/tiny/{file}: {reason}"


def test_list_when_one_is_shadowed_lists_the_first_only(workplace: Path):
    make(workplace / "recipes" / "llama3_8b", "9.0.0")
    listed = {entry.bundle.name: entry.version for entry in list_bundles()}
    assert listed["llama3_8b"] == "9.0.0"
    assert set(listed) == {path.name for path in PACKAGED.iterdir()}
    assert [name for name in listed if name.startswith("llama3_") and name[7].isdigit()][:5] == [
        "llama3_1b", "llama3_3b", "llama3_8b", "llama3_8b_lora", "llama3_8b_sft",
    ]  # fmt: skip


def test_list_when_places_are_the_same_directory_lists_it_once(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
):
    make(workplace / "recipes" / "x")
    monkeypatch.setenv("TITAN_RECIPES_PATH", str(workplace / "recipes"))
    assert [entry.bundle.name for entry in list_bundles()].count("x") == 1
    assert message("x@2.0.0") == (
        'recipe "x" has no version 2.0.0; versions there: 1.0.0 (recipes/x)'
    )


def test_list_when_a_recipe_cannot_be_looked_into_lists_it_as_broken(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
):
    # Root may look into any directory, so the refusal is made here.
    closed = make(workplace / "recipes" / "closed") / "recipe.toml"
    is_file, read_bytes = Path.is_file, Path.read_bytes

    def refuse(path: Path, call):
        if path.absolute() == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return call(path)

    monkeypatch.setattr(Path, "is_file", lambda path: refuse(path, is_file))
    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path, read_bytes))
    listed = {entry.bundle.name: entry for entry in list_bundles()}
    assert listed["closed"].broken == "recipes/closed/recipe.toml: can't be read: Permission denied"
    assert listed["llama3_8b"].broken == ""


def test_find_when_paths_are_hopeless_says_so(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    (workplace / "recipes").symlink_to("recipes")
    monkeypatch.setenv("TITAN_RECIPES_PATH", "~no such user")
    assert len(list_bundles()) == len(list(PACKAGED.iterdir()))
    assert message("a" * 300).startswith(f'no recipe "{"a" * 300}" in recipes, ~no such user, ')
    assert message("./" + "a" * 300).endswith(
        "no such directory; give a recipe's name or its directory"
    )
    assert message("~no such user/x").startswith("~no such user/x: no such directory")
