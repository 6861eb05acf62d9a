"""Checkpointer in one process, without a process group."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from titan_recipes.config.schema import Checkpoint
from titan_recipes.errors import CheckpointError, ConfigError
from titan_recipes.trainer.checkpoint.commit import (
    list_checkpoints,
    read_manifest,
    verify_checkpoint,
)
from titan_recipes.trainer.checkpoint.store import Checkpointer, _save_error


def state(value: float) -> dict[str, Any]:
    """A state every tensor and number of which is `value`."""
    return {
        "model": {"layers.0.weight": torch.full((3, 2), float(value)), "ids": torch.tensor([1, 2])},
        "optimizer": {
            "state.layers.0.weight.step": torch.tensor(float(value)),
            "param_groups.layers.0.weight.betas": (value, 0.95),
        },
        "lr_scheduler": {"last_epoch": value},
        "dataloader": {"next_sample": value, "nested": {"list": [value, None]}},
        "rng": {"numpy": np.random.RandomState(int(value)).get_state()},
        "progress": {"step": int(value)},
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Run:
    """A checkpoints folder and the lines that were logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []

    def open(self, **config: Any) -> Checkpointer:
        return Checkpointer(Checkpoint(**config), self.folder, log=self.lines.append)

    def save(self, *steps: int, **config: Any) -> None:
        checkpointer = self.open(**config)
        for step in steps:
            checkpointer.save(step, state(step))
        checkpointer.close()

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "checkpoints")


def flip_byte(path: Path) -> None:
    shard = path / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[-200] ^= 4
    shard.write_bytes(data)


def truncate(path: Path) -> None:
    shard = path / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-10])


def lose_shard(path: Path) -> None:
    (path / "__0_0.distcp").unlink()


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def lose_index(path: Path) -> None:
    (path / ".metadata").unlink()


@pytest.mark.parametrize("async_mode", ["disabled", "async"])
def test_load_when_saved_gives_back_every_part(run: Run, async_mode: str) -> None:
    assert run.open().load(state(0)) is None
    run.save(0, 5, async_mode=async_mode)
    assert verify_checkpoint(run.path(5)) == []
    loaded = state(0)
    weight = loaded["model"]["layers.0.weight"]
    assert run.open().load(loaded) == 5
    assert same(loaded, state(5))
    assert loaded["model"]["layers.0.weight"] is weight  # in place
    assert run.open(load_step=0).load(loaded) == 0
    assert same(loaded, state(0))
    assert run.open(load_step=5).load(loaded) == 5


def test_save_when_async_keeps_the_values_of_its_call(run: Run) -> None:
    checkpointer = run.open(async_mode="async")
    for step in (1, 2):
        changing = state(step)
        checkpointer.save(step, changing)
        changing["model"]["layers.0.weight"].fill_(99)
        changing["optimizer"]["state.layers.0.weight.step"].fill_(99)
        changing["dataloader"]["nested"]["list"][0] = 99
    checkpointer.close()
    for step in (1, 2):
        loaded = state(0)
        run.open(load_step=step).load(loaded)
        assert same(loaded, state(step))


def test_save_when_async_fails_is_raised_at_the_next_call(run: Run) -> None:
    run.folder.write_text("a file where the folder should be")
    checkpointer = run.open(async_mode="async")
    checkpointer.save(1, state(1))
    with pytest.raises(RuntimeError, match="checkpoint of step 1 not saved: rank 0: "):
        checkpointer.save(2, state(2))
    run.folder.unlink()
    checkpointer.save(2, state(2))
    checkpointer.wait()
    assert [c.step for c in list_checkpoints(run.folder)] == [2]


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CheckpointError),
        (OSError(errno.ESTALE, "Stale file handle"), RuntimeError),
        (ValueError("odd"), RuntimeError),
    ],
)
def test_save_error_when_a_retry_may_help_is_not_a_fault(
    cause: Exception, expected: type[Exception]
) -> None:
    error = _save_error(7, CheckpointException("write", {3: _wrap_exception(cause)}))
    assert type(error) is expected
    text = f"checkpoint of step 7 not saved: rank 3: {type(cause).__name__}: {cause}"
    assert str(error) == text


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_byte, "__0_0.distcp: content differs from its sha256"),
        (truncate, "__0_0.distcp: "),
        (lose_shard, "__0_0.distcp: missing"),
        (lose_manifest, "manifest.json: missing"),
        (lose_index, ".metadata: missing"),
    ],
)
def test_load_when_newest_is_bad_takes_the_one_before_and_says_so(
    run: Run, damage: Callable[[Path], None], reason: str
) -> None:
    run.save(1, 2)
    damage(run.path(2))
    loaded = state(0)
    run.lines.clear()
    assert run.open().load(loaded) == 1
    assert same(loaded, state(1))
    assert run.lines[0].startswith(f"checkpoint: not loading {run.path(2)}: {reason}")
    with pytest.raises(CheckpointError, match=r"step-00000002: .*" + reason[:8]):
        run.open(load_step=2).load(loaded)
    damage(run.path(1))
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint that .*00000002.*00000001"):
        run.open().load(loaded)


def test_load_when_the_step_is_missing_names_those_there(run: Run) -> None:
    run.save(1, 2)
    with pytest.raises(CheckpointError, match="no checkpoint of step 3; there are: 2, 1"):
        run.open(load_step=3).load(state(0))


def test_load_when_a_save_was_cut_off_ignores_and_removes_it(run: Run) -> None:
    run.save(1)
    shutil.copytree(run.path(1), run.folder / ".step-00000002.saving")
    run.lines.clear()
    assert run.open().load(state(0)) == 1
    assert run.lines[0] == "checkpoint: removed .step-00000002.saving, a save that was cut off"
    assert [path.name for path in run.folder.iterdir()] == ["step-00000001"]


def test_load_when_the_model_differs_names_the_parameters(run: Run) -> None:
    run.save(1)
    other = state(0)
    other["model"]["layers.0.weight"] = torch.zeros(4, 2)
    other["model"]["layers.1.weight"] = torch.zeros(4, 2)
    other["dataloader"]["rank-3"] = 1
    with pytest.raises(CheckpointError) as error:
        run.open().load(other)
    assert str(error.value).splitlines()[1:] == [
        "  dataloader.rank-3: not in the checkpoint",
        "  model.layers.0.weight: (3, 2) in the checkpoint, (4, 2) in the job's model",
        "  model.layers.1.weight: not in the checkpoint",
    ]


def test_load_when_parts_are_excluded_leaves_them(run: Run) -> None:
    run.save(5)
    excluded = ("optimizer", "lr_scheduler", "dataloader", "rng")
    loaded = state(0)
    assert run.open(exclude_from_loading=excluded).load(loaded) == 5
    for part, value in state(0).items():
        assert same(loaded[part], value) == (part in excluded), part


def test_keep_latest_k_when_saving_removes_the_oldest(run: Run) -> None:
    run.save(1, 2, 3, keep_latest_k=2)
    assert [c.step for c in list_checkpoints(run.folder)] == [3, 2]
    run.save(4, 5, keep_latest_k=0)
    assert [c.step for c in list_checkpoints(run.folder)] == [5, 4, 3, 2]


def test_save_when_the_step_was_just_saved_or_loaded_is_skipped(run: Run) -> None:
    checkpointer = run.open()
    checkpointer.save(1, state(1))
    checkpointer.save(1, state(2))
    again, loaded = run.open(), state(0)
    assert again.load(loaded) == 1
    again.save(1, state(2))
    run.open().load(loaded)
    assert same(loaded, state(1))
    again.save(1, state(2), model_only=True)
    assert read_manifest(run.path(1)).model_only is True


def test_save_when_load_only_writes_nothing(run: Run) -> None:
    run.save(1, load_only=True)
    assert not run.folder.exists()


def test_model_only_when_resumed_says_so_and_takes_the_one_before(run: Run) -> None:
    run.save(1)
    run.open(export_dtype="bfloat16").save(2, state(2.5), model_only=True)
    assert read_manifest(run.path(2)).model_only
    run.lines.clear()
    assert run.open().load(state(0)) == 1
    reason = "holds the weights only, so training can't be resumed from it"
    assert run.lines[0] == f"checkpoint: not loading {run.path(2)}: {reason}"
    with pytest.raises(CheckpointError, match=reason):
        run.open(load_step=2).load(state(0))


@pytest.mark.parametrize("kind", ["run", "folder", "checkpoint"])
def test_initial_load_when_the_run_has_none_takes_weights(
    tmp_path: Path, run: Run, kind: str
) -> None:
    run.open(export_dtype="bfloat16").save(2, state(2.5), model_only=True)
    source = {"run": tmp_path, "folder": run.folder, "checkpoint": run.path(2)}[kind]
    fresh = Run(tmp_path / "fresh")
    loaded = state(1)
    assert fresh.open(initial_load_path=str(source)).load(loaded) == 0
    assert same(loaded["model"], state(2.5)["model"])
    assert loaded["model"]["layers.0.weight"].dtype == torch.float32
    for part in loaded.keys() - {"model"}:
        assert same(loaded[part], state(1)[part]), part
    fresh.save(7)
    assert fresh.open(initial_load_path=str(source)).load(loaded) == 7


def test_initial_load_when_everything_goes_on_from_its_step(tmp_path: Path, run: Run) -> None:
    run.save(3)
    fresh = Run(tmp_path / "fresh")
    loaded = state(0)
    config = {"initial_load_path": str(run.folder), "initial_load_model_only": False}
    assert fresh.open(**config).load(loaded) == 3
    assert same(loaded, state(3))
    with pytest.raises(ConfigError, match=r"checkpoint\.initial_load_path: no checkpoint in"):
        fresh.open(initial_load_path=str(tmp_path / "nowhere")).load(loaded)
