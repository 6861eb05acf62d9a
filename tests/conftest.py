"""What every test gets: state, configuration and caches of its own, and one thread a process."""

import os
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

# Before torch is imported anywhere: many small processes on few cores.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _own_environment(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    session_cache: Path,
) -> None:
    """Nothing of the user's own: no outputs, no profiles, no recipes, no token cache."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    # As in an activated environment: printed commands are then bare names.
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
    for name in ("TITAN_RECIPES_OUTPUTS", "TITAN_RECIPES_PATH", "TITAN_RECIPES_CLUSTERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token cache for the whole session: the same text is tokenized once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text file of real text: a few of Python's own modules."""
    import argparse
    import inspect
    import textwrap
    import typing

    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("".join(inspect.getsource(m) for m in (argparse, inspect, typing, textwrap)))
    return path


WAITING = ("cluster", "e2e")
"""Folders whose tests wait for SLURM and for processes more than they compute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait and files that compute take turns, so that two processes share the cores.

    They come first: at the end of a run none waits for a long one.
    """
    files = dict.fromkeys(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    waiting = [file for file in files if file.parent.name in WAITING]
    computing = [file for file in files if file.parent.name == "trainer" and file in slow]
    turns = [file for pair in zip_longest(waiting, computing) for file in pair if file]
    order = {file: number for number, file in enumerate(dict.fromkeys([*turns, *files]))}
    items.sort(key=lambda item: order[item.path])
