"""An API server for each test, the kubeconfig that leads to it, and what makes pods there."""

import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import tomli_w
from live_runs import WORKER, stand_in_torchrun

from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.pod_cluster import PodCluster
from tests.kubernetes.pod_runs import IMAGE, Place
from titan_recipes.launch import kubernetes_client, kubernetes_mirror, kubernetes_pods


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[ApiServer]:
    """The server; the user's kubeconfig leads to it."""
    server = ApiServer()
    for module in (kubernetes_pods, kubernetes_mirror):
        monkeypatch.setattr(module, "ASK_SECONDS", 0.2)  # a server that is nobody else's
    monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "kubeconfig")))
    _forget()
    yield server
    server.stop()
    _forget()


def _forget() -> None:
    """What this process remembers of clusters."""
    kubernetes_client._connected.cache_clear()
    kubernetes_pods.forget_answers()
    kubernetes_mirror._mirrored.clear()


@pytest.fixture
def pods(api: ApiServer) -> Generator[PodCluster]:
    """Objects on the server get pods, which are processes."""
    cluster = PodCluster(api)
    yield cluster
    cluster.stop()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Folders, and a profile with the same site."""
    found = Place(tmp_path / "outputs", tmp_path / "volume", tmp_path / "lab.toml")
    found.outputs.mkdir()
    found.volume.mkdir()
    profile = {
        "scheduler": "kubernetes",
        "outputs": str(found.volume),
        "container": {"image": IMAGE, "python": sys.executable},
        "kubernetes": {
            "namespace": "ml",
            "volumes": {"outputs": {"claim": "runs", "path": str(found.volume)}},
        },
    }
    found.profile.write_text(tomli_w.dumps(profile))
    return found


@pytest.fixture
def workers(pods: PodCluster, tmp_path: Path) -> PodCluster:
    """Pods whose trainer is a few lines: real node entry points, torchrun and torch stood in for.

    See live_runs.
    """
    modules = tmp_path / "modules"
    stand_in_torchrun(modules)
    (modules / "worker.py").write_text(WORKER)
    pods.more, pods.env = ("--trainer-module", "worker"), {"PYTHONPATH": str(modules)}
    return pods
