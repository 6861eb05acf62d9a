"""`docker run` of the image: whose files it writes, how it stops, and that it goes on exactly."""

import os
from pathlib import Path

import pytest
from live_runs import until
from training import rows, small_settings

from tests.docker.conftest import DockerEngine
from tests.parity import TINY
from titan_recipes.config.layout import RunLayout
from titan_recipes.launch.attempts import newest_checkpoint
from titan_recipes.launch.record import read_record
from titan_recipes.launch.rows import read_rows

STEPS = 60
SHORT = (
    f"training.steps={STEPS}",
    "training.local_batch_size=2",
    "training.global_batch_size=2",
    "checkpoint.enable=true",
)
OURS = 1000
OTHER = 4321
SECONDS = 180.0
LOCKED_DOWN = (f"--user={OTHER}:{OTHER}", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL")
"""A user the image does not know, who can write to nothing but /tmp and the outputs."""


def outputs_of(uid: int, folder: Path) -> Path:
    folder.mkdir()
    os.chown(folder, uid, uid)
    return folder


def options(outputs: Path, corpus: Path, *more: str) -> list[str]:
    """What these containers run with: no network, no capability that a user would not have."""
    corpus.chmod(0o644)
    mounts = [f"--volume={outputs}:/outputs", f"--volume={corpus}:/data/corpus.txt:ro"]
    return ["--network=none", "--env=OMP_NUM_THREADS=1", *mounts, *more]


def launch(name: str) -> list[str]:
    """The words of a launch of llama3_debug made tiny."""
    settings = small_settings(Path("/data/corpus.txt"), *TINY, *SHORT)
    return ["launch", "llama3_debug", "--name", name, *(f"--set={value}" for value in settings)]


def owners(folder: Path) -> set[tuple[int, int]]:
    return {(p.lstat().st_uid, p.lstat().st_gid) for p in [folder, *folder.rglob("*")]}


@pytest.fixture(scope="module")
def undisturbed(
    image: str, engine: DockerEngine, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The directory of a run that trained to its end in a container, and what that printed."""
    outputs = outputs_of(OURS, tmp_path_factory.mktemp("image") / "outputs")
    words = ["run", "--rm", *options(outputs, corpus), image, *launch("whole")]
    return outputs / "whole", engine.run(*words, seconds=SECONDS).stdout


def test_run_of_the_image_trains_as_its_user_whose_the_outputs_are(
    undisturbed: tuple[Path, str],
) -> None:
    directory, said = undisturbed
    assert f"whole SUCCEEDED at step {STEPS}/{STEPS}" in said
    assert [row["step"] for row in rows(directory)] == list(range(1, STEPS + 1))
    assert newest_checkpoint(directory / "checkpoints") == STEPS
    assert owners(directory) == {(OURS, OURS)}


def test_run_at_docker_stop_saves_a_checkpoint_from_which_another_container_goes_on_exactly(
    undisturbed: tuple[Path, str],
    image: str,
    engine: DockerEngine,
    corpus: Path,
    tmp_path: Path,
) -> None:
    outputs = outputs_of(OTHER, tmp_path / "outputs")
    layout = RunLayout(outputs / "cut")
    flags = options(outputs, corpus, *LOCKED_DOWN)
    name = "titan-stopped"
    engine.run("run", "--detach", "--name", name, *flags, image, *launch("cut"))
    try:
        until(lambda: len(read_rows(layout.metrics)) >= 5, "5 steps", SECONDS)
        engine.run("stop", "--time=60", name)
        said = engine.run("logs", name).stdout
        code = engine.run("inspect", "--format={{.State.ExitCode}}", name).stdout.strip()
    finally:
        engine.run("rm", "--force", name)
    step = newest_checkpoint(layout.root / "checkpoints")
    assert "stopping with a checkpoint; another SIGTERM leaves it to itself" in said, said
    assert f"cut STOPPED at step {step}/{STEPS}" in said
    assert code == "0"
    assert 5 <= step < STEPS
    assert step == len(rows(layout.root))
    engine.run("run", "--rm", *flags, image, "resume", "cut", seconds=SECONDS)
    outcomes = [attempt.outcome for attempt in read_record(layout).attempts]
    assert outcomes == ["stopped", "done"]
    exact = ("step", "loss", "grad_norm", "lr")
    whole, cut = (
        [[row[key] for key in exact] for row in rows(directory)]
        for directory in (undisturbed[0], layout.root)
    )
    assert cut == whole
    assert owners(layout.root) == {(OTHER, OTHER)}


def test_launch_into_a_folder_of_another_user_says_how_to_run_as_its_owner(
    image: str, engine: DockerEngine, corpus: Path, tmp_path: Path
) -> None:
    outputs = outputs_of(OTHER, tmp_path / "outputs")
    words = ["run", "--rm", *options(outputs, corpus), image, *launch("denied")]
    done = engine.run(*words, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: /outputs/denied: can't be made: Permission denied; /outputs is uid {OTHER}'s, "
        'this container runs as uid 1000: add --user "$(id -u):$(id -g)" to docker run'
    )
    assert list(outputs.iterdir()) == []
