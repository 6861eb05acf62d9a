"""Rows, TensorBoard, Weights & Biases, console lines, throughput."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from titan_recipes.config.layout import METRICS_MARK, RunLayout
from titan_recipes.config.schema import Metrics
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.metrics import (
    MetricsLog,
    RankEvents,
    StepTimer,
    format_seconds,
    memory_gib,
    truncate_rows,
)


def open_log(root: Path, *, rank: int = 0, **config: bool) -> MetricsLog:
    return MetricsLog(Metrics(**config), RunLayout(root), rank=rank, total_steps=20)


def log_steps(log: MetricsLog, *steps: int, loss: float = 5.0) -> None:
    for step in steps:
        log.log(
            step,
            loss=loss,
            grad_norm=0.98,
            lr=1.2e-3,
            tokens_per_second=3120.4,
            mfu=None,
            memory_gib=2.314,
        )


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_log_when_a_step_is_logged_writes_one_row_of_the_contract(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = open_log(tmp_path, enable_tensorboard=False)
    before = time.time()
    log_steps(log, 1)
    text = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(text)
    assert before <= row.pop("time") <= time.time()
    assert row == {
        "step": 1,
        "loss": 5.0,
        "grad_norm": 0.98,
        "lr": 0.0012,
        "tokens_per_second": 3120.4,
        "mfu": None,
        "memory_gib": 2.314,
    }
    assert text == json.dumps(json.loads(text)) + "\n"
    machine, people = capsys.readouterr().out.splitlines()
    assert machine == METRICS_MARK + text[:-1]
    assert people == (
        "step 1/20  loss 5.0000  grad_norm 0.98  lr 1.2e-03  3,120 tok/s/device  2.31 GiB"
    )
    log_steps(log, 2)
    log.log(3, loss=1, grad_norm=1, lr=1, tokens_per_second=1, mfu=0.4119, memory_gib=1, skipped=1)
    _, second, machine, third = capsys.readouterr().out.splitlines()
    assert second.startswith("step 2/20  loss 5.0000")
    assert second.endswith("  2.31 GiB  eta 0s")
    assert "  mfu 41.2%  " in third
    assert json.loads(machine.removeprefix(METRICS_MARK))["skipped"] == 1


def test_log_when_values_are_not_finite_writes_null(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.log(
        1,
        loss=math.nan,
        grad_norm=math.inf,
        lr=-math.inf,
        tokens_per_second=None,
        mfu=None,
        memory_gib=1.0,
    )
    log.log_validation(1, loss=math.nan)
    log.close()
    row = rows(tmp_path / "metrics.jsonl")[0]
    assert {name for name, value in row.items() if value is None} == {
        "loss", "grad_norm", "lr", "tokens_per_second", "mfu"
    }  # fmt: skip
    assert rows(tmp_path / "validation.jsonl")[0]["loss"] is None
    assert EventAccumulator(str(tmp_path / "tb")).Reload().Tags()["scalars"] == ["train/memory_gib"]


def test_log_when_resumed_has_every_step_once_in_rows_and_tensorboard(tmp_path: Path) -> None:
    first = open_log(tmp_path)
    first.truncate_after(0)
    log_steps(first, 1, 2, 3, loss=5.0)
    first.log_validation(2, loss=4.5)
    first.log_validation(3, loss=4.25)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    # No close: the process was killed, with its rows on disk. The next one goes on from step 2.
    assert scalars(tmp_path / "tb", "train/loss") == [(1, 5.0), (2, 5.0), (3, 5.0)]
    second = open_log(tmp_path)
    second.truncate_after(2)
    log_steps(second, 3, 4, loss=2.0)
    second.log_validation(4, loss=1.5)
    second.close()
    first.close()

    expected = [(1, 5.0), (2, 5.0), (3, 2.0), (4, 2.0)]
    assert [(r["step"], r["loss"]) for r in rows(tmp_path / "metrics.jsonl")] == expected
    assert scalars(tmp_path / "tb", "train/loss") == expected
    expected = [(2, 4.5), (4, 1.5)]
    assert [(r["step"], r["loss"]) for r in rows(tmp_path / "validation.jsonl")] == expected
    assert scalars(tmp_path / "tb", "validation/loss") == expected


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', '{"step": 1}\n{"step": 2}\n'),
        ('{"step": 1}\n{"step": 2}', '{"step": 1}\n'),
        ('{"step": 1}\n{"st\nnull\n[1]\n{"loss": 1}\n', '{"step": 1}\n'),
        ("", ""),
    ],
)
def test_truncate_rows_when_past_or_torn_removes_them(tmp_path: Path, text: str, kept: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    truncate_rows(path, 2)
    assert path.read_text() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_log_when_not_rank_0_writes_tensorboard_only_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_steps(open_log(tmp_path, rank=1), 1)
    assert list(tmp_path.iterdir()) == []
    for rank in (0, 1):
        log = open_log(tmp_path, rank=rank, save_for_all_ranks=True)
        log_steps(log, 1, loss=float(rank))
        log.close()
    assert scalars(tmp_path / "tb" / "rank-0", "train/loss") == [(1, 0.0)]
    assert scalars(tmp_path / "tb" / "rank-1", "train/loss") == [(1, 1.0)]
    assert len(rows(tmp_path / "metrics.jsonl")) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2


WANDB_PROGRAM = """
import sys
from pathlib import Path
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.schema import Metrics
from titan_recipes.trainer.metrics import MetricsLog
config = Metrics(enable_wandb=True, enable_tensorboard=False)
for step in (1, 2):
    log = MetricsLog(config, RunLayout(Path(sys.argv[1])), rank=0, total_steps=2)
    log.log(step, loss=5.5, grad_norm=1, lr=1, tokens_per_second=1, mfu=None, memory_gib=1)
    log.close()
"""


def test_log_when_wandb_is_offline_records_the_run_under_one_id(tmp_path: Path) -> None:
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    root = tmp_path / "my-run"
    root.mkdir()
    subprocess.run([sys.executable, "-c", WANDB_PROGRAM, str(root)], check=True, env=environment)
    run_id = (root / "wandb" / "run-id").read_text()
    # wandb names a directory by second and id; two attempts in one second share it or add "-1".
    folders = list((root / "wandb").glob("offline-run-*"))
    assert folders
    assert all(f"-{run_id}" in folder.name for folder in folders)
    files = [file for folder in folders for file in folder.glob("run-*.wandb")]
    content = b"".join(file.read_bytes() for file in files)
    for part in (b"train/loss", b"5.5", b"my-run", b"titan-recipes"):
        assert part in content


def test_log_when_wandb_is_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError) as error:
        open_log(tmp_path, enable_wandb=True)
    assert "metrics.enable_wandb: wandb is not installed; pip install 'titan-recipes[wandb]'" in (
        str(error.value)
    )
    open_log(tmp_path, enable_wandb=True, rank=1)


def test_log_when_wandb_has_no_key_is_the_user_s_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"metrics\.enable_wandb: No API key .*; set WANDB_API_K"):
        open_log(tmp_path, enable_wandb=True)


def test_rank_events_when_written_are_lines_of_json(tmp_path: Path) -> None:
    events = RankEvents(RunLayout(tmp_path), 3)
    events.write("loaded", step=10, path=tmp_path)
    events.write("skipped", loss=math.nan)
    first, second = rows(tmp_path / "logs" / "rank-3.jsonl")
    assert first.pop("time") <= second.pop("time")
    assert first == {"rank": 3, "event": "loaded", "step": 10, "path": str(tmp_path)}
    assert second == {"rank": 3, "event": "skipped", "loss": None}


def test_step_timer_when_read_counts_trained_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timer = StepTimer(world_size=4, flops_per_token=1_000_000, peak_tflops=0.001)
    timer.add_tokens(6000)
    now[0] += 2
    with timer.paused():
        now[0] += 50
    timer.add_tokens(2000)
    now[0] += 2
    reached = timer.read()
    assert reached.tokens_per_second == 8000 / 4 / 4
    assert reached.mfu == pytest.approx(500 * 1e6 / 1e9)
    assert timer.read().tokens_per_second is None
    timer.add_tokens(400)
    now[0] += 1
    assert timer.read().tokens_per_second == 100
    unknown = StepTimer(world_size=1, flops_per_token=1, peak_tflops=None)
    unknown.add_tokens(10)
    now[0] += 1
    assert (unknown.read().tokens_per_second, unknown.read().mfu) == (10, None)


def test_memory_gib_when_memory_is_used_grows_by_it() -> None:
    before = memory_gib(torch.device("cpu"))
    held = torch.ones(64 << 20)  # 0.25 GiB
    assert memory_gib(torch.device("cpu")) - before == pytest.approx(0.25, abs=0.02)
    assert held.sum() == 64 << 20


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (80, "1m20s"), (7500, "2h05m"), (273600, "3d04h")],
)
def test_format_seconds_is_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
