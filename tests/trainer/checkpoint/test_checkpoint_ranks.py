"""Checkpoints between real processes over gloo: save at 2 ranks, load at 1, 2 and 4."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from titan_recipes.config.schema import Checkpoint
from titan_recipes.trainer.checkpoint.commit import list_checkpoints, verify_checkpoint
from titan_recipes.trainer.checkpoint.store import Checkpointer

PROGRAM = Path(__file__).with_name("checkpoint_program.py")


@contextmanager
def started(case: str, directory: Path, *worlds: int) -> Iterator[subprocess.Popen[str]]:
    """The program, running; no rank outlives the block."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), case, str(directory), *map(str, worlds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(case: str, directory: Path, *worlds: int) -> None:
    """Run the case at these world sizes; every rank has to end well."""
    with started(case, directory, *worlds) as process:
        output = process.communicate(timeout=180)[0]
    for world in worlds:
        codes = json.loads((directory / f"codes-{case}-{world}.json").read_text())
        assert codes == [0] * world, output


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    run("save", directory, 2)
    folder = directory / "damaged"
    shutil.copytree(directory / "checkpoints", folder)
    shutil.copytree(folder / "step-00000002", folder / "step-00000003")
    manifest = folder / "step-00000003" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 2', '"step": 3'))
    assert verify_checkpoint(folder / "step-00000003") == []
    shard = folder / "step-00000003" / "__1_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return directory


def test_save_when_two_ranks_commits_verified_checkpoints_and_no_failed_ones(saved: Path) -> None:
    assert [c.step for c in list_checkpoints(saved / "checkpoints")] == [2]
    assert [c.step for c in list_checkpoints(saved / "async")] == [3, 2]
    for folder in ("checkpoints", "async"):
        for stored in list_checkpoints(saved / folder):
            assert verify_checkpoint(stored.path) == []
            assert {p.name for p in stored.path.iterdir()} == {
                "__0_0.distcp", "__1_0.distcp", ".metadata", "manifest.json"
            }  # fmt: skip


def test_load_when_other_layout_is_bitwise_what_was_saved(saved: Path) -> None:
    run("load", saved, 1, 2, 4)  # compares; see `load` in checkpoint_program.py
    bad = saved / "damaged" / "step-00000003"
    refused = f"checkpoint: not loading {bad}: __1_0.distcp: content differs from its sha256"
    no_rng = "checkpoint: it holds no random state for rank 2, 3, which keep their seeds"
    for world in (1, 2, 4):
        lines = json.loads((saved / f"log-{world}.json").read_text())
        assert refused in lines["damaged"]
        assert (no_rng in lines["checkpoints"]) == (world == 4)


def test_save_when_a_rank_is_killed_is_never_loaded_and_the_one_before_is(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for attempt in range(5):
        with started("save_forever", tmp_path, 2) as process:
            kill_during_a_save(folder, tmp_path / "pids-save_forever-2.json")
            output = process.communicate(timeout=60)[0]
        # The surviving rank ends at once and in a way that is retried: exit 1, not 3.
        codes = (tmp_path / "codes-save_forever-2.json").read_text()
        assert codes == f"[1, {-signal.SIGKILL}]", (attempt, output)
        assert "CheckpointError" not in output
        leftovers = list(folder.glob(".step-*.saving"))
        if leftovers:
            break
        # The kill came too late, after the rename.
        (tmp_path / "meet-save_forever-2").unlink()
        (tmp_path / "pids-save_forever-2.json").unlink()
        shutil.rmtree(folder)
    assert [path.name for path in leftovers] == [leftovers[0].name]

    lines: list[str] = []
    checkpointer = Checkpointer(Checkpoint(), folder, log=lines.append)
    newest = list_checkpoints(folder)[0]
    assert verify_checkpoint(newest.path) == []
    assert newest.step < int(leftovers[0].name.split("-")[1].split(".")[0])
    state = {"model": {"weight-1": torch.zeros(4 << 20)}, "progress": {"step": 0}}
    assert checkpointer.load(state) == newest.step
    assert state["progress"]["step"] == newest.step
    assert torch.equal(state["model"]["weight-1"], torch.ones(4 << 20))
    assert lines == [
        f"checkpoint: removed {leftovers[0].name}, a save that was cut off",
        f"checkpoint: loaded {newest.path}",
    ]
    assert not list(folder.glob(".step-*"))


def kill_during_a_save(folder: Path, pids: Path) -> None:
    """SIGKILL rank 1 once a checkpoint is committed and it writes a shard of a later one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if list_checkpoints(folder) and any(folder.glob(".step-*.saving/__1_0.distcp")):
            os.kill(json.loads(pids.read_text())[1], signal.SIGKILL)
            return
    raise AssertionError("no save was seen")
