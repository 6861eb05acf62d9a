"""A working directory with one small recipe in ./recipes, and nothing of the user's around it."""

from pathlib import Path

import pytest
from small_recipe import TINY, write

from titan_recipes.bundle.bundle import Bundle


@pytest.fixture(name="write")
def write_fixture():
    return write


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; $TITAN_RECIPES_PATH is unset."""
    monkeypatch.delenv("TITAN_RECIPES_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny(workplace: Path) -> Bundle:
    """./recipes/tiny: a valid recipe, to be edited in a test."""
    return Bundle(write(workplace / "recipes" / "tiny", TINY))
