"""docker/compose.yaml: what it names exists, and one command trains with TensorBoard beside it."""

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml
from live_runs import until
from training import rows

import titan_recipes
from tests.docker.conftest import DockerEngine
from titan_recipes.config.schema import FaultTolerance
from titan_recipes.launch.image import DEFAULT_IMAGE

DOCKER = Path(titan_recipes.__file__).parent.parent / "docker"
COMPOSE = DOCKER / "compose.yaml"


def test_compose_runs_this_versions_image_and_stops_it_within_the_checkpoint_grace() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert {name: service["image"] for name, service in services.items()} == {
        name: f"${{TITAN_IMAGE:-{DEFAULT_IMAGE}}}" for name in ("trainer", "tensorboard")
    }
    seconds = int(re.fullmatch(r"(\d+)s", services["trainer"]["stop_grace_period"])[1])  # type: ignore[index]
    assert seconds > FaultTolerance().grace_seconds
    gpus = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert gpus.keys() <= services.keys()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_compose_up_trains_and_tensorboard_shows_the_run(
    image: str, engine: DockerEngine, tmp_path: Path
) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    os.chown(outputs, 1234, 1234)
    port = free_port()
    settings = "model.n_layers=2 training.seq_len=64 training.steps=3 validation.enable=false"
    words = "".join(f" --set {setting}" for setting in settings.split())
    environment = os.environ | {
        "TITAN_IMAGE": image,
        "RECIPE": f"llama3_debug --plan cpu1 --name composed{words}",
        "OUTPUTS": str(outputs),
        "RUN_AS": "1234:1234",
        "TENSORBOARD_PORT": str(port),
    }
    compose = ["docker-compose", "--file", str(COMPOSE), "--project-name", "titan-composed"]

    def call(*words: str) -> str:
        done = subprocess.run(
            [*compose, *words], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shown() -> list[str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=5) as answer:
                return json.loads(answer.read())
        except OSError:  # not up yet
            return []

    try:
        call("up", "--detach")
        trainer = call("ps", "--quiet", "trainer").strip()
        assert engine.run("wait", trainer).stdout == "0\n", engine.run("logs", trainer).stdout
        assert [row["step"] for row in rows(outputs / "composed")][-1] == 3
        until(lambda: "composed/tb" in shown(), "TensorBoard shows the run")
    finally:
        call("down", "--volumes", "--timeout", "1")
