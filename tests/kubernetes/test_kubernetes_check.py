"""`cluster check` of a profile for Kubernetes, against the tests' API server."""

import json
import os
from pathlib import Path

import pytest
import tomli_w

from tests.kubernetes.api_handler import Key
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.pod_runs import IMAGE, call

NAMED: dict[str, Key] = {
    "kubernetes.service_account": ("v1", "serviceaccounts", "ml"),
    "kubernetes.priority_class": ("scheduling.k8s.io/v1", "priorityclasses", ""),
    "kubernetes.image_pull_secrets": ("v1", "secrets", "ml"),
    "kubernetes.volumes.data.claim": ("v1", "persistentvolumeclaims", "ml"),
}
"""Key of the profile -> where the object is that it names, which is called `x`."""
QUEUES: dict[str, Key] = {
    "jobset": ("kueue.x-k8s.io/v1beta2", "localqueues", "ml"),
    "trainjob": ("kueue.x-k8s.io/v1beta2", "localqueues", "ml"),
    "volcano": ("scheduling.volcano.sh/v1beta1", "queues", ""),
}
TOKEN: Key = ("v1", "secrets", "ml")
OBJECTS = {
    "jobset": "PersistentVolumeClaim, JobSet",
    "trainjob": "PersistentVolumeClaim, TrainingRuntime, TrainJob",
    "volcano": "PersistentVolumeClaim, Job",
}


@pytest.fixture(params=["jobset", "trainjob", "volcano"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def profile_of(tmp_path: Path, kind: str) -> Path:
    """A profile that names one object of each sort."""
    profile = {
        "scheduler": "kubernetes",
        "container": {"image": IMAGE},
        "secrets": {"HF_TOKEN": "secret:hf/token"},
        "kubernetes": {
            "kind": kind,
            "namespace": "ml",
            "queue": "x",
            "service_account": "x",
            "priority_class": "x",
            "image_pull_secrets": ["x"],
            "volumes": {
                "outputs": {"path": "/outputs", "size": "1Ti"},
                "data": {"claim": "x", "path": "/data"},
            },
        },
    }
    path = tmp_path / "k8s.toml"
    path.write_text(tomli_w.dumps(profile))
    return path


@pytest.fixture
def whole(api: ApiServer, kind: str) -> ApiServer:
    """A cluster with all that the profile names."""
    for key in (*NAMED.values(), QUEUES[kind]):
        api.make(key, {"metadata": {"name": "x"}, "data": {"password": "hunter2"}})
    api.make(TOKEN, {"metadata": {"name": "hf"}, "data": {"token": "hunter2"}})
    return api


def test_profile_that_fits_is_taken_and_nothing_is_made(
    whole: ApiServer, kind: str, tmp_path: Path
) -> None:
    before = {key: {*things} for key, things in whole.objects.items()}
    done = call("cluster", "check", profile_of(tmp_path, kind))
    assert done.exit_code == 0, done.output
    fits = f"fits {whole.url} (Kubernetes v1.36.0); namespace ml takes {OBJECTS[kind]}"
    assert done.output.endswith(f"k8s: {fits}\n")
    assert {key: {*things} for key, things in whole.objects.items() if things} == before


def test_each_object_that_is_not_there_is_named(
    whole: ApiServer, kind: str, tmp_path: Path
) -> None:
    for key in (*NAMED.values(), QUEUES[kind], TOKEN):
        whole.objects[key].clear()
    done = call("cluster", "check", profile_of(tmp_path, kind))
    assert done.exit_code == 2
    lines = [line for line in done.output.splitlines() if line.startswith("error: ")]
    keys = [line.split(": ")[2] for line in lines]
    assert sorted(keys) == sorted([*NAMED, "kubernetes.queue", "secrets.HF_TOKEN"])
    assert 'no Secret "hf" in namespace ml; make it, or name one that is there' in done.output


@pytest.mark.parametrize(
    ("right", "purpose"),
    [
        (("create", "jobsets"), "create jobsets.jobset.x-k8s.io, which launching needs"),
        (("get", "pods/log"), "get pods/log, which following needs"),
        (("create", "persistentvolumeclaims"), "create persistentvolumeclaims, which a volume"),
    ],
)
@pytest.mark.parametrize("kind", ["jobset"])
def test_missing_right_is_a_problem(
    whole: ApiServer, kind: str, tmp_path: Path, right: tuple[str, str], purpose: str
) -> None:
    whole.denied.add(right)
    done = call("cluster", "check", profile_of(tmp_path, kind))
    assert done.exit_code == 2
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert f"namespace ml: you may not {purpose}" in line
    assert not [path for method, path in whole.requests if "dryRun" in path]


@pytest.mark.parametrize("kind", ["jobset"])
def test_what_a_user_may_not_look_at_is_a_note(whole: ApiServer, kind: str, tmp_path: Path) -> None:
    said = 'secrets "x" is forbidden: User "me" cannot get resource "secrets"'
    whole.fail_next("GET", "secrets/x", 403, message=said)
    whole.denied.add(("list", "events"))
    done = call("cluster", "check", profile_of(tmp_path, kind), "--json")
    report = json.loads(done.output)
    assert (done.exit_code, report["fits"], report["problems"]) == (0, True, [])
    assert [note["what"] for note in report["notes"]] == [
        "namespace ml",
        "kubernetes.image_pull_secrets",
    ]


def test_server_that_is_no_api_server_is_one_line(api: ApiServer, tmp_path: Path) -> None:
    kubeconfig = Path(os.environ["KUBECONFIG"])
    kubeconfig.write_text(kubeconfig.read_text().replace(api.url, f"{api.url}/other"))
    done = call("cluster", "check", profile_of(tmp_path, "jobset"))
    assert done.exit_code == 2
    said = "get the version: not the answer of a Kubernetes API server: '404 page not found'"
    assert done.output == f"error: {api.url}/other: {said}; see the kubeconfig's server\n"


@pytest.mark.parametrize("kind", ["jobset"])
def test_queue_of_a_cluster_without_kueue_is_a_problem(
    whole: ApiServer, kind: str, tmp_path: Path
) -> None:
    whole.installed -= {place for place in whole.installed if place[0].startswith("kueue")}
    done = call("cluster", "check", profile_of(tmp_path, kind))
    assert done.exit_code == 2
    assert 'kubernetes.queue: got "x": ' in done.output
    assert "install Kueue there" in done.output


@pytest.mark.parametrize("kind", ["trainjob"])
def test_refusal_of_the_server_is_told_but_for_a_runtime_that_is_not_kept(
    whole: ApiServer, kind: str, tmp_path: Path
) -> None:
    unseen = "specified trainingRuntime must be created before the TrainJob is created"
    whole.fail_next("POST", "trainjobs", 403, message=f"denied the request: {unseen}")
    path = profile_of(tmp_path, kind)
    done = call("cluster", "check", path)
    assert (done.exit_code, "note: k8s: TrainJob: not tried" in done.output) == (0, True)
    assert "takes PersistentVolumeClaim, TrainingRuntime\n" in done.output
    whole.fail_next("POST", "trainingruntimes", 403, message="exceeded quota: team")
    done = call("cluster", "check", path)
    assert done.exit_code == 2
    assert "error: k8s: TrainingRuntime: can't create trainingruntimes" in done.output
    assert "exceeded quota: team (HTTP 403)" in done.output
