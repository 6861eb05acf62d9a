"""`--scheduler docker` on a real engine: the same numbers, the user's files, every kind of end."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from torchx.runner import Runner
from torchx.schedulers.docker_scheduler import create_scheduler as local_docker
from training import rows

from tests.cluster.cluster_jobs import (
    SAVED_STEP,
    assert_same_losses,
    attempts,
    call,
    hold,
    num_rows,
    outcomes,
    release,
    said,
    wait_for,
    wait_for_end,
)
from tests.docker.conftest import DockerEngine
from tests.parity import difference, parity_job
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.site import Container, Site
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch import docker_engine
from titan_recipes.launch.docker_request import container_name, container_request
from titan_recipes.launch.record import read_record
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.submit import launch
from titan_recipes.launch.titan_docker import start_request
from titan_recipes.render import render

pytestmark = pytest.mark.slow

UID = 4321
SECRET = "hunter2-and-more"


def docker_job(corpus: Path, image: str, *overrides: str, ranks: int) -> Job:
    settings = ("checkpoint.enable=true", f"checkpoint.interval={SAVED_STEP}")
    job = parity_job(corpus, *settings, *overrides, ranks=ranks, dp=ranks)
    return replace(job, site=Site(container=Container(image=image)), env={"OMP_NUM_THREADS": "1"})


def start(outputs: Path, name: str, job: Job) -> RunLayout:
    """As `titan-recipes launch --scheduler docker --detach` does."""
    return launch(job, outputs=outputs, command=("t",), name=name, scheduler="docker").layout


def container_of(layout: RunLayout) -> docker_engine.Container:
    found = docker_engine.find_container(name=container_name(layout.root))
    assert found is not None
    return found


def ended_container(layout: RunLayout) -> docker_engine.Container:
    """The run's container once it has ended, a moment after the run wrote down that it did."""
    wait_for(lambda: container_of(layout).has_ended, layout)
    return container_of(layout)


@pytest.fixture(scope="module")
def undisturbed(
    image: str, tmp_path_factory: pytest.TempPathFactory, corpus: Path, session_cache: Path
) -> dict[int, RunLayout]:
    """Runs of one and of two ranks that nobody stops, with a secret; not waited for."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        patch.setenv("XDG_STATE_HOME", str(outputs / "state"))
        patch.setenv("SITE_KEY", SECRET)
        started = dict[int, RunLayout]()
        for ranks in (1, 2):
            job = docker_job(corpus, image, ranks=ranks)
            job = replace(job, site=replace(job.site, secrets={"SITE_KEY": "env"}))
            started[ranks] = start(outputs, f"ranks-{ranks}", job)
        return started


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_in_a_container_train_as_without_one(
    ranks: int,
    undisturbed: dict[int, RunLayout],
    local_runs: Callable[[int], Path],
    image: str,
    engine: DockerEngine,
) -> None:
    layout, local = undisturbed[ranks], local_runs(ranks)
    wait_for_end(layout)
    assert difference(local, layout.root) < 1e-6
    record, inspected = read_record(layout), ended_container(layout)
    assert record.scheduler == "docker"
    assert record.handle.startswith(f"titan_docker://titan-recipes/ranks-{ranks}-")
    built = engine.run("image", "inspect", "--format", "{{.Id}}", image).stdout.strip()
    assert record.image == built
    assert (inspected.status, inspected.exit_code) == ("exited", 0)


def test_secret_reaches_the_container_and_no_file(
    undisturbed: dict[int, RunLayout], engine: DockerEngine
) -> None:
    layout = undisturbed[2]
    wait_for_end(layout)
    seen = engine.run("inspect", "--format", "{{.Config.Env}}", container_of(layout).id)
    assert f"SITE_KEY={SECRET}" in seen.stdout
    files = [path for path in layout.root.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert "--env SITE_KEY \\\n" in (layout.root / "docker.sh").read_text()


def test_engine_is_asked_for_what_docker_sh_shows(
    undisturbed: dict[int, RunLayout], corpus: Path, engine: DockerEngine
) -> None:
    layout = undisturbed[2]
    (found,) = json.loads(engine.run("inspect", container_of(layout).id).stdout)
    host, config = found["HostConfig"], found["Config"]
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert (host["Privileged"], host["RestartPolicy"]["Name"]) == (False, "")
    assert host["ShmSize"] == 16 * 2**30
    assert config["StopTimeout"] == 330
    assert config["User"] == f"{os.getuid()}:{os.getgid()}"
    mounts = {mount["Source"]: (mount["Destination"], mount["RW"]) for mount in found["Mounts"]}
    assert mounts[str(corpus)] == (str(corpus), False)
    assert mounts[str(layout.root)] == (str(layout.root), True)
    text = (layout.root / "docker.sh").read_text()
    shown = ("--cap-drop ALL", "--stop-timeout 330", f"--name {config['Hostname']}", found["Image"])
    assert [words for words in shown if words not in text] == []


def test_stopped_and_killed_run_resumes_to_the_same_numbers(
    undisturbed: dict[int, RunLayout],
    tmp_path: Path,
    corpus: Path,
    image: str,
    engine: DockerEngine,
) -> None:
    layout = start(tmp_path, "run", docker_job(corpus, image, ranks=1))
    name = container_name(layout.root)

    (held,) = hold(layout, num_ranks=1).values()
    with stopping("docker", "stop", name):  # within StopTimeout, or it would kill
        wait_for(layout.stop.exists, layout)
        release(held)
    stopped_at = num_rows(layout)
    assert stopped_at < SAVED_STEP * 3
    assert run_status(layout).state is RunState.STOPPED
    assert ended_container(layout).exit_code == 0

    first = container_of(layout).id
    assert call("resume", layout.root, "--detach").exit_code == 0
    assert container_of(layout).id != first
    assert docker_engine.find_container(name=first) is None

    (held,) = hold(layout, num_ranks=1, step=stopped_at + 1).values()
    with stopping(sys.executable, "-m", "titan_recipes.cli", "cancel", str(layout.root)):
        wait_for(layout.stop.exists, layout)
        release(held)
    assert attempts(layout)[-1].cause == "asked to stop"
    cancelled_at = num_rows(layout)

    assert call("resume", layout.root, "--detach").exit_code == 0
    hold(layout, num_ranks=1, step=cancelled_at + 1)
    engine.run("kill", name)
    lost = f"lost: its container {name} exited with 137 (killed)"
    assert call("status", layout.root).stdout.splitlines()[1].endswith(f"FAILED: {lost}")

    assert call("resume", layout.root, "--detach").exit_code == 0
    killed = call("cancel", layout.root, "--now").stdout
    assert "STOPPED" in killed
    assert "killed by cancel --now" in killed
    ended_container(layout)
    engine.run("rm", name)
    assert call("resume", layout.root).exit_code == 0
    assert outcomes(layout) == ["stopped", "stopped", "failed", "stopped", "done"]
    wait_for_end(undisturbed[1])
    assert_same_losses(layout, undisturbed[1])


@contextmanager
def stopping(*command: str) -> Iterator[None]:
    """A command at work while what is inside happens; it has to succeed."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        yield
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def test_outputs_belong_to_the_user_who_launched(
    corpus: Path, image: str, engine: DockerEngine
) -> None:
    home = Path(tempfile.mkdtemp(prefix="titan-user-"))  # pytest's own folders are root's alone
    try:
        shutil.copy(corpus, home / "corpus.txt")
        short = ("training.steps=3", "lr_scheduler.warmup_steps=1")
        job = docker_job(home / "corpus.txt", image, *short, ranks=1)
        site = f'scheduler = "docker"\ncontainer.image = "{image}"\nenv.OMP_NUM_THREADS = "1"\n'
        (home / "site.toml").write_text(site)
        shutil.chown(home, UID, UID)
        words = [word for setting in job.origin.overrides for word in ("--set", setting)]
        words += ["--cluster", str(home / "site.toml"), "--outputs", str(home / "outputs")]
        done = as_user(home, "launch", "llama3_debug", *words, "--name", "theirs")
        layout = RunLayout(home / "outputs/theirs")
        assert done.returncode == 0, done.stdout + said(layout)
        owners = {(path.stat().st_uid, path.stat().st_gid) for path in layout.root.rglob("*")}
        assert owners == {(UID, UID)}
        assert as_user(home, "status", "theirs", "--outputs", str(home / "outputs")).stdout
    finally:
        shutil.rmtree(home)


def as_user(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`titan-recipes` as somebody who may ask the engine. Skips where they can't run Python."""
    socket = Path(os.environ["DOCKER_HOST"].removeprefix("unix://"))
    who = [f"--reuid={UID}", f"--regid={UID}", f"--groups={socket.stat().st_gid}"]
    python = ["setpriv", *who, sys.executable]
    if subprocess.run([*python, "-c", "import titan_recipes"], cwd="/").returncode:
        pytest.skip("this Python is for nobody but its owner")
    own = {"HOME": home, "XDG_STATE_HOME": home / "state", "TITAN_RECIPES_CACHE": home / "cache"}
    environment = {**os.environ, **{name: str(path) for name, path in own.items()}}
    command = [*python, "-m", "titan_recipes.cli", *words]
    return subprocess.run(
        command, env=environment, cwd=home, capture_output=True, text=True, timeout=300
    )


def test_stock_local_docker_runs_the_component(
    image: str, corpus: Path, tmp_path: Path, session_cache: Path
) -> None:
    tmp_path.chmod(0o755)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    outputs.chmod(0o777)  # torchx starts it as the image's own user
    job = docker_job(corpus, image, "training.steps=3", "lr_scheduler.warmup_steps=1", ranks=1)
    component = tmp_path / "component.py"
    component.write_text(render(job, name="stock")["component.py"])
    shared = [f"type=bind,src={path},dst={path}" for path in (outputs, corpus)]
    words = ["--image", image, "--outputs", str(outputs), "--mounts", ",".join(shared)]
    words += ["--env", "RES_OPTIONS=timeout:1 attempts:1"]  # no name server answers here
    runner = Runner("torchx", {"local_docker": local_docker})
    handle = runner.run_component(f"{component}:train", words, "local_docker", {}, workspace="")
    layout = RunLayout(outputs / "stock")
    wait_for(layout.record.exists, layout)
    wait_for_end(layout)
    assert [row["step"] for row in rows(layout.root)] == [1, 2, 3]
    record = read_record(layout)
    assert (record.scheduler, record.handle) == ("local_docker", handle)
    with pytest.raises(LaunchError, match="local_docker alone knows its image and its mounts"):
        raise_from(call("resume", layout.root, "--set", "training.steps=4"))


def raise_from(result: object) -> None:
    """What the command said, as an error."""
    raise LaunchError(str(getattr(result, "output", result)))


def test_all_that_is_missing_is_said_at_once_and_nothing_is_left(
    engine: DockerEngine, tmp_path: Path, corpus: Path
) -> None:
    job = docker_job(corpus, "localhost/nothing:1", "training.dataset_path='/gone'", ranks=1)
    site = replace(job.site, secrets={"SITE_KEY": "env"})
    with pytest.raises(ConfigError) as error:
        start(tmp_path / "outputs", "run", replace(job, site=site))
    lines = str(error.value).splitlines()
    assert [line for line in lines if "secrets.SITE_KEY: not in this environment" in line]
    assert [line for line in lines if "/gone does not exist" in line]
    cure = "localhost/nothing:1: not on this machine; get it: docker pull localhost/nothing:1"
    assert [line for line in lines if line.endswith(cure)]
    assert not (tmp_path / "outputs").exists()


def test_container_that_cannot_start_leaves_nothing(
    image: str, engine: DockerEngine, tmp_path: Path, corpus: Path
) -> None:
    job = docker_job(corpus, image, ranks=1)
    job = replace(job, site=replace(job.site, mounts={"/no/such/folder": "/data"}))
    with pytest.raises(LaunchError, match="bind source path does not exist: /no/such/folder"):
        start(tmp_path / "outputs", "run", job)
    assert not (tmp_path / "outputs/run").exists()
    name = container_name(tmp_path / "outputs/run")
    assert docker_engine.find_container(name=name) is None


def test_limits_are_raised_or_it_says_that_they_are_not(
    image: str, engine: DockerEngine, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture
) -> None:
    docker_engine.make_network()
    (tmp_path / "run").mkdir()
    job = docker_job(corpus, image, ranks=1)
    asked = container_request(job, tmp_path / "run", image=image, working_dir="/")
    asked = replace(asked, raises_limits=True, command=("sh", "-c", "ulimit -l"))
    Path(asked.caches[0]).mkdir(exist_ok=True)
    started = start_request(asked, {})
    found = docker_engine.find_container(name=asked.name)
    assert found is not None
    engine.run("wait", found.id)
    limit = docker_engine.last_words(found.id)
    docker_engine.remove(found.id)
    warned = "the engine may not raise memlock and stack" in capsys.readouterr().err
    assert (started.raises_limits, warned) == (limit == "unlimited", limit != "unlimited")
