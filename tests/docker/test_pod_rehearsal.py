"""What pods do, rehearsed: a job's manifest run as containers that find each other by its names.

A container stands for each pod: command, variables, user, volumes and what it may not do are the
manifest's; the network knows it by the names that the cluster's DNS would give. The test does the
rest of a controller's work: pod indexes, and a new gang where one pod failed.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from training import column

from tests.cluster.cluster_jobs import (
    HELD_STEP,
    SAVED_STEP,
    STEPS,
    assert_same_losses,
    hold,
    outcomes,
    release,
    wait_for,
)
from tests.docker.conftest import DockerEngine
from tests.manifests import documents, pods
from tests.parity import difference, parity_job
from titan_recipes.config.job import Job
from titan_recipes.config.kubernetes import Kubernetes, Volume
from titan_recipes.config.layout import ATTEMPT_MARK, METRICS_MARK, RunLayout
from titan_recipes.config.site import Site
from titan_recipes.launch.attempts import newest_checkpoint
from titan_recipes.launch.pod import EXIT_STOPPED
from titan_recipes.launch.record import read_record
from titan_recipes.render import PodSubmission, object_name, render_kubernetes

pytestmark = pytest.mark.slow

NODES = 2
UID = 1000
SECONDS = 300.0
POD_NAMES = {
    "jobset": ("{name}-trainer-0-{index}", "JOB_COMPLETION_INDEX"),
    "trainjob": ("{name}-node-0-{index}", "JOB_COMPLETION_INDEX"),
    "volcano": ("{name}-trainer-{index}", "VC_TASK_INDEX"),
}
"""kind -> a pod's host name, and the variable in which its controller tells it its place."""


@dataclass(frozen=True, slots=True)
class Gang:
    """The pods of one submission, as containers on a network of their own."""

    engine: DockerEngine
    manifest: dict[str, Any]
    kind: str
    claims: dict[str, Path]
    """Claim -> the folder that stands for it."""

    @property
    def name(self) -> str:
        return self.manifest["metadata"]["name"]

    def container(self, index: int) -> str:
        return f"{self.name}-{index}"

    def start(self) -> None:
        """What the job's controller and the kubelets do."""
        (pod,) = pods(self.manifest)
        host_name, rank_env = POD_NAMES[self.kind]
        for index in range(NODES):
            host = host_name.format(name=self.name, index=index)
            names = ["--network", self.name, "--hostname", host]
            names += ["--network-alias", f"{host}.{self.name}"]
            place = ["--env", f"{rank_env}={index}"]
            # No name server answers here, and torch asks for this name for 10 s at each start.
            place += ["--add-host", "localhost:::ffff:127.0.0.1"]
            words = ["--name", self.container(index), *names, *place]
            self.engine.run("run", "--detach", *words, *self._flags(pod["spec"]))

    def _flags(self, spec: dict[str, Any]) -> Iterator[str]:
        """docker's words for a pod's spec; fails for what it has none for."""
        (trainer,) = spec["containers"]
        may, whole = trainer["securityContext"], spec["securityContext"]
        assert may["capabilities"] == {"drop": ["ALL"]}
        assert (may["allowPrivilegeEscalation"], may["privileged"]) == (False, False)
        assert (whole["runAsNonRoot"], "resources" in trainer) == (True, False)
        yield from ("--cap-drop=ALL", "--security-opt=no-new-privileges")
        yield from ("--user", f"{whole['runAsUser']}:{whole['runAsGroup']}")
        yield from ["--read-only"] if may["readOnlyRootFilesystem"] else []
        for variable in trainer["env"]:
            yield from ("--env", f"{variable['name']}={unescaped(variable['value'])}")
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for mount in trainer["volumeMounts"]:
            volume, path = volumes[mount["name"]], mount["mountPath"]
            if claim := volume.get("persistentVolumeClaim"):
                end = ":ro" if mount.get("readOnly") else ""
                yield f"--volume={self.claims[claim['claimName']]}:{path}{end}"
            else:
                assert set(volume) == {"name", "emptyDir"}
                yield f"--tmpfs={path}:exec,mode=1777"
        program, *arguments = map(unescaped, trainer["command"])
        yield from ("--entrypoint", program, trainer["image"], *arguments)

    def wait(self) -> list[int]:
        """The exit codes, once all have ended."""
        names = map(self.container, range(NODES))
        return [
            int(code) for code in self.engine.run("wait", *names, seconds=SECONDS).stdout.split()
        ]

    def logs(self, index: int) -> str:
        return self.engine.run("logs", self.container(index)).stdout

    def remove(self) -> None:
        names = map(self.container, range(NODES))
        self.engine.run("rm", "--force", *names, check=False)


def unescaped(word: str) -> str:
    """A word of a manifest as the kubelet hands it on."""
    return word.replace("$$", "$")


@contextmanager
def gang(
    engine: DockerEngine, image: str, job: Job, layout: RunLayout, corpus: Path
) -> Iterator[Gang]:
    kind = job.site.kubernetes.kind
    submission = PodSubmission(
        object_name=object_name(layout.root.name),
        run_name=layout.root.name,
        run_dir=str(layout.root),
        image=image,
    )
    manifest = documents(render_kubernetes(job, submission))[0]
    (outputs, data) = ("runs", "texts")
    made = Gang(engine, manifest, kind, {outputs: layout.root.parent, data: corpus.parent})
    engine.run("network", "create", made.name)
    try:
        yield made
    finally:
        made.remove()
        engine.run("network", "rm", made.name)


def pod_job(corpus: Path, outputs: Path, kind: Any) -> Job:
    """A tiny job of two pods with a rank each; the volumes' paths are those of this machine."""
    outputs.mkdir()
    os.chown(outputs, UID, UID)
    corpus.parent.chmod(0o755)
    corpus.chmod(0o644)
    settings = ("checkpoint.enable=true", f"checkpoint.interval={SAVED_STEP}")
    plan = ("plan.gpus_per_node=1", f"plan.nodes={NODES}")
    job = parity_job(corpus, *settings, *plan, dp=NODES)
    volumes = {
        "outputs": Volume(claim="runs", path=str(outputs)),
        "texts": Volume(path=str(corpus.parent), read_only=True),
    }
    kubernetes = Kubernetes(kind=kind, volumes=volumes)
    return replace(job, site=Site(kubernetes=kubernetes), env={"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def undisturbed(
    image: str,
    engine: DockerEngine,
    corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunLayout, list[str]]:
    """A JobSet's run of two pods, and what pod 0 printed."""
    outputs = tmp_path_factory.mktemp("rehearsal") / "outputs"
    job, layout = pod_job(corpus, outputs, "jobset"), RunLayout(outputs / "whole")
    with gang(engine, image, job, layout, corpus) as its_pods:
        its_pods.start()
        assert its_pods.wait() == [0, 0], its_pods.logs(0)
        return layout, its_pods.logs(0).splitlines()


def test_two_pods_train_as_two_local_ranks(
    undisturbed: tuple[RunLayout, list[str]], local_runs: Callable[[int], Path]
) -> None:
    layout, said = undisturbed
    assert outcomes(layout) == ["done"]
    assert read_record(layout).handle.endswith("/default:whole")
    assert {path.lstat().st_uid for path in layout.root.rglob("*")} == {UID}
    steps = [line for line in said if line.startswith(METRICS_MARK)]
    assert len(steps) == len(column(layout.root, "loss")) == STEPS
    assert [line.startswith(ATTEMPT_MARK) for line in said].count(True) == 2  # began, ended
    assert difference(local_runs(NODES), layout.root) <= 1e-6


def test_two_pods_of_which_one_is_killed_start_again_and_end_as_if_undisturbed(
    undisturbed: tuple[RunLayout, list[str]],
    image: str,
    engine: DockerEngine,
    corpus: Path,
    tmp_path: Path,
) -> None:
    job = pod_job(corpus, tmp_path / "outputs", "volcano")
    layout = RunLayout(tmp_path / "outputs" / "cut")
    with gang(engine, image, job, layout, corpus) as its_pods:
        its_pods.start()
        held = hold(layout)[layout]
        engine.run("kill", its_pods.container(1))
        release(held)
        assert its_pods.wait() == [1, 128 + signal.SIGKILL], its_pods.logs(0)
        its_pods.remove()
        its_pods.start()  # as RestartJob does
        assert its_pods.wait() == [0, 0], its_pods.logs(0)
    assert outcomes(layout) == ["failed", "done"]
    assert_same_losses(layout, undisturbed[0])


def test_two_pods_of_which_one_is_evicted_save_and_ask_to_be_started_again(
    undisturbed: tuple[RunLayout, list[str]],
    image: str,
    engine: DockerEngine,
    corpus: Path,
    tmp_path: Path,
) -> None:
    job = pod_job(corpus, tmp_path / "outputs", "trainjob")
    layout = RunLayout(tmp_path / "outputs" / "cut")
    with gang(engine, image, job, layout, corpus) as its_pods:
        its_pods.start()
        held = hold(layout)[layout]
        engine.run("kill", "--signal=SIGTERM", its_pods.container(1))
        wait_for(layout.stop.exists, layout)
        release(held)
        assert its_pods.wait() == [EXIT_STOPPED, EXIT_STOPPED], its_pods.logs(0)
    (attempt,) = read_record(layout).attempts
    saved = newest_checkpoint(layout.root / "checkpoints")
    assert (attempt.outcome, attempt.final, attempt.step_to) == ("stopped", False, saved)
    losses = column(layout.root, "loss")
    assert saved == len(losses) >= HELD_STEP
    assert losses == column(undisturbed[0].root, "loss")[:saved]
