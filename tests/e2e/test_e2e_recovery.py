"""Runs that die and come back: real launches, real SIGKILLs, the same numbers in the end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from training import column, largest_difference, rows, small_job, small_settings, train, train_here

DEADLINE_SECONDS = 180.0


def cli(*arguments: str) -> list[str]:
    """The command line of our program."""
    return [sys.executable, "-m", "titan_recipes.cli", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run our program to its end."""
    return subprocess.run(cli(*arguments), capture_output=True, text=True, timeout=DEADLINE_SECONDS)


def launch_command(
    outputs: Path, name: str, corpus: Path, *overrides: str, ranks: int = 1
) -> list[str]:
    """`launch llama3_debug` with the small settings."""
    settings = small_settings(corpus, *overrides, ranks=ranks)
    sets = [part for setting in settings for part in ("--set", setting)]
    return cli("launch", "llama3_debug", "--outputs", str(outputs), "--name", name, *sets)


def launch(
    outputs: Path, name: str, corpus: Path, *overrides: str, ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """Launch and follow to the end."""
    command = launch_command(outputs, name, corpus, *overrides, ranks=ranks)
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS)


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition holds; its value."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"not within {DEADLINE_SECONDS:g} s: {what}")


def last_row(directory: Path) -> dict[str, Any]:
    """The newest row of metrics.jsonl; step 0 where there is none."""
    try:
        lines = (directory / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    return json.loads(lines[-1]) if lines else {"step": 0, "time": 0.0}


def last_step(directory: Path) -> int:
    """The newest step in metrics.jsonl; 0 where there is none."""
    return last_row(directory)["step"]


def rank_pids(directory: Path) -> dict[int, int]:
    """Rank -> process id of the trainer processes of a run."""
    found: dict[int, int] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        job = str(directory / "job.toml").encode()
        if b"titan_recipes.trainer" in arguments and job in arguments:
            ranks = [v for v in environment if v.startswith(b"RANK=")]
            if ranks:
                found[int(ranks[0].removeprefix(b"RANK="))] = int(process.name)
    return found


def status(outputs: Path, name: str) -> dict[str, Any]:
    """`status --json` of a run."""
    return json.loads(run("status", name, "--outputs", str(outputs), "--json").stdout)


def final_parameters(directory: Path, step: int = 20) -> dict[str, torch.Tensor]:
    """The full tensors of a checkpoint."""
    target = directory / "full.pt"
    dcp_to_torch_save(directory / "checkpoints" / f"step-{step:08d}", target)
    return torch.load(target, weights_only=False)["model"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, corpus: Path, session_cache: Path) -> Path:
    """20 steps on two ranks, undisturbed."""
    directory = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        train(directory, small_job(corpus, ranks=2))
    return directory


def test_every_rank_killed_in_step_11_then_resumed_ends_bit_identical(
    straight: Path, tmp_path: Path, corpus: Path
) -> None:
    command = launch_command(tmp_path, "killed", corpus, ranks=2)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    directory = tmp_path / "killed"
    wait_until(lambda: last_step(directory) >= 10, "step 10")
    committed = directory / "checkpoints" / "step-00000010"
    wait_until(committed.exists, "the checkpoint of step 10")
    time.sleep(random.uniform(0, 0.1))  # a random moment of step 11
    node = json.loads((directory / "run.json").read_text())["attempts"][-1]["pid"]
    for pid in (node, *rank_pids(directory).values()):
        os.kill(pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 1, output
    found = status(tmp_path, "killed")
    assert found["state"] == "FAILED"
    assert "lost" in found["cause"]

    resumed = run("resume", "killed", "--outputs", str(tmp_path))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    for name in ("loss", "grad_norm", "lr"):
        assert column(directory, name) == column(straight, name)
    ours, expected = final_parameters(directory), final_parameters(straight)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


@pytest.mark.parametrize("ranks", [1, 4])
def test_resumed_on_other_ranks_sees_the_same_samples(
    straight: Path, tmp_path: Path, corpus: Path, ranks: int
) -> None:
    job = small_job(
        corpus,
        f"checkpoint.initial_load_path='{straight / 'checkpoints' / 'step-00000010'}'",
        "checkpoint.initial_load_model_only=false",
        ranks=ranks,
    )
    (train if ranks > 1 else train_here)(tmp_path / "run", job)
    table = rows(tmp_path / "run")
    assert [row["step"] for row in table] == list(range(11, 21))
    for name in ("loss", "grad_norm"):
        values = [row[name] for row in table]
        assert largest_difference(column(straight, name)[10:], values) <= 1e-5


def test_killed_rank_is_retried_and_resumes_by_itself(
    straight: Path, tmp_path: Path, corpus: Path
) -> None:
    command = launch_command(tmp_path, "retried", corpus, "checkpoint.interval=5", ranks=2)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    directory = tmp_path / "retried"
    wait_until(lambda: last_step(directory) >= 7, "step 7")
    os.kill(rank_pids(directory)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, output
    assert "rank 1 was killed by SIGKILL" in output
    assert status(tmp_path, "retried")["attempt"] == 2
    assert column(directory, "loss") == column(straight, "loss")


def test_rank_killed_at_the_same_step_four_times_ends_failed(tmp_path: Path, corpus: Path) -> None:
    command = launch_command(
        tmp_path, "failing", corpus, "checkpoint.interval=100", "training.steps=2000"
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    directory, killed_at = tmp_path / "failing", 0.0
    for _ in range(4):

        def is_at_step_3(since: float = killed_at) -> bool:
            row = last_row(directory)
            return row["step"] >= 3 and row["time"] > since

        wait_until(is_at_step_3, "the attempt's third step")
        os.kill(rank_pids(directory)[0], signal.SIGKILL)
        killed_at = time.time()
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 1, output
    found = status(tmp_path, "failing")
    assert (found["state"], found["attempt"]) == ("FAILED", 4)
    assert "rank 0 was killed by SIGKILL" in found["cause"]
    assert "\n" not in found["cause"]


def test_config_error_in_a_rank_ends_in_2_and_is_not_retried(tmp_path: Path, corpus: Path) -> None:
    no_tokenizer = f"assets.tokenizer='{corpus}'"
    done = launch(tmp_path, "untokenized", corpus, no_tokenizer, ranks=2)
    assert done.returncode == 2, done.stdout
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {corpus}: assets.tokenizer: no tokenizer of a known")
    assert "Traceback" not in done.stdout + done.stderr
    assert status(tmp_path, "untokenized")["attempt"] == 1


def test_corrupt_shard_ends_in_3_and_is_not_retried(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TITAN_RECIPES_CACHE", str(tmp_path / "cache"))
    settings = small_settings(corpus)
    sets = [part for setting in settings for part in ("--set", setting)]
    prepared = run("data", "prepare", "llama3_debug", *sets)
    assert prepared.returncode == 0, prepared.stderr
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    done = launch(tmp_path, "corrupt", corpus)
    assert done.returncode == 3, done.stdout
    assert largest.name in done.stdout
    found = status(tmp_path, "corrupt")
    assert (found["state"], found["attempt"]) == ("FAILED", 1)
    assert largest.name in found["cause"]


def test_ctrl_c_saves_and_resume_continues_exactly(
    straight: Path, tmp_path: Path, corpus: Path
) -> None:
    command = launch_command(tmp_path, "stopped", corpus, "checkpoint.interval=100", ranks=2)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    directory = tmp_path / "stopped"
    wait_until(lambda: last_step(directory) >= 2, "step 2")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, output
    stopped_at = last_step(directory)
    assert 2 <= stopped_at < 20
    assert status(tmp_path, "stopped")["state"] == "STOPPED"
    assert run("resume", "stopped", "--outputs", str(tmp_path)).returncode == 0
    assert column(directory, "loss") == column(straight, "loss")


def test_flipped_byte_in_the_newest_checkpoint_falls_back_and_says_so(
    straight: Path, tmp_path: Path, corpus: Path
) -> None:
    assert launch(tmp_path, "flipped", corpus, "training.steps=12", ranks=1).returncode == 0
    directory = tmp_path / "flipped"
    newest = directory / "checkpoints" / "step-00000012"
    shard = next(newest.glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    verified = run("checkpoint", "verify", str(directory))
    assert verified.returncode == 3
    assert shard.name in verified.stdout + verified.stderr
    resumed = run("resume", "flipped", "--outputs", str(tmp_path), "--set", "training.steps=14")
    assert resumed.returncode == 0, resumed.stdout
    assert "step-00000012" in resumed.stdout
    assert "resumed after step 10" in resumed.stdout
    assert [row["step"] for row in rows(directory)] == list(range(1, 15))


def test_checkpoint_metadata_is_read_by_dcp(straight: Path) -> None:
    metadata = dcp.FileSystemReader(straight / "checkpoints" / "step-00000020").read_metadata()
    assert "model.layers.0.attention.wq.weight" in metadata.state_dict_metadata
