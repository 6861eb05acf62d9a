"""`titan_kubernetes` and `launch --scheduler kubernetes`: what is submitted, and what refused."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from live_runs import HOLD_STEP, until
from past_runs import debug_job
from torchx.runner import Runner
from torchx.specs import AppState

from tests.kubernetes.api_handler import Key, Object
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.pod_cluster import DIGEST, PodCluster
from tests.kubernetes.pod_runs import IMAGE, NO_RIGHT, Place, call, start, wait_for_end
from titan_recipes.config.data_root import install_command
from titan_recipes.config.job import decode, read_job
from titan_recipes.config.kubernetes import Volume
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.site import Container, Site
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch import kubernetes_client
from titan_recipes.launch.kubernetes_errors import KubernetesError
from titan_recipes.launch.kubernetes_submission import as_pods, submitted
from titan_recipes.launch.record import read_record
from titan_recipes.launch.state import run_status
from titan_recipes.launch.submit import preview
from titan_recipes.launch.titan_kubernetes import Request, create_scheduler

JOBSETS: Key = ("jobset.x-k8s.io/v1alpha2", "jobsets", "ml")
TRAINJOBS: Key = ("trainer.kubeflow.org/v1alpha1", "trainjobs", "ml")
RUNTIMES: Key = ("trainer.kubeflow.org/v1alpha1", "trainingruntimes", "ml")
OBJECT_PATH = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/ml/jobsets/a"
CLAIMS: Key = ("v1", "persistentvolumeclaims", "ml")


def component(place: Place, folder: Path, *overrides: str) -> str:
    """What `titan-recipes render --scheduler kubernetes` writes."""
    folder.mkdir(exist_ok=True)
    files = preview(place.job(*overrides), outputs=str(place.outputs), scheduler="kubernetes")
    (folder / "component.py").write_text(files["component.py"])
    return f"{folder}/component.py:train"


def runner() -> Runner:
    return Runner("torchx", {"titan_kubernetes": create_scheduler})


def requested(what: str, *words: str, **cfg: str) -> Request:
    """What `torchx run -s titan_kubernetes -cfg ... component.py:train WORDS` would submit."""
    return runner().dryrun_component(what, [*words], "titan_kubernetes", cfg, workspace="").request


# --- dry ------------------------------------------------------------------------------------------


def test_dry_run_needs_nothing_but_files(tmp_path: Path) -> None:
    code = """
import sys
from titan_recipes.cli import main
try:
    main(["launch", "llama3_8b", "--scheduler", "kubernetes", "--name", "a", "--dry-run"])
finally:
    heavy = {"kubernetes", "torch", "torchx", "yaml", "urllib3"} & set(sys.modules)
    print("imported:", sorted(heavy))
"""
    environment = {"PATH": "", "HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "imported: []" in done.stdout
    job_yaml = done.stdout.partition("# ---- job.yaml\n")[2].partition("imported:")[0]
    found = yaml.safe_load(job_yaml)
    assert (found["kind"], found["metadata"]["name"]) == ("JobSet", "a")
    assert "/outputs/a" in job_yaml
    assert [*tmp_path.iterdir()] == []


def test_torchx_dry_run_prints_the_manifest_without_a_cluster(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    request = requested(component(place, tmp_path / "c"), "--name", "a")
    (found,) = yaml.safe_load_all(str(request))
    assert found["metadata"]["name"] == "a"
    assert request.submission.run_dir == f"{place.volume}/a"
    assert request.submission.image == IMAGE


def test_what_torchx_says_wins_over_the_profile(place: Place, tmp_path: Path) -> None:
    what = component(place, tmp_path / "c")
    words = ("--name", "a", "--env", "A=1,B=2", "--cpu", "3", "--memory_mb", "512")
    mounts = ("--mounts", "type=volume,src=data,dst=/data,readonly")
    request = requested(
        what, *words, *mounts, "--image", "other:1", kind="volcano", queue="q", namespace="ns"
    )
    (found,) = yaml.safe_load_all(str(request))
    assert (found["apiVersion"], found["spec"]["queue"]) == ("batch.volcano.sh/v1alpha1", "q")
    assert found["metadata"]["namespace"] == "ns"
    (task,) = found["spec"]["tasks"]
    (container,) = task["template"]["spec"]["containers"]
    assert container["image"] == "other:1"
    assert container["resources"]["limits"] == {"cpu": "3", "memory": "512Mi"}
    env = {one["name"]: one["value"] for one in container["env"]}
    assert (env["A"], env["B"]) == ("1", "2")
    assert "TORCHX_TRACKERS" not in env
    mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounted["/data"]["readOnly"]
    carried = decode(container["command"][container["command"].index("--job") + 1])
    assert carried.site.kubernetes.queue == "q"
    assert carried == request.job


@pytest.mark.parametrize(
    ("words", "cfg", "expected"),
    [
        (("--gpu", "4"), {}, "--gpu 4: the job's plan has 0"),
        (("--max_retries", "2"), {}, "--max_retries 2: the job itself restarts"),
        (("--mounts", "type=bind,src=/a,dst=/b"), {}, "--mounts: pods mount claims, type=volume"),
        ((), {"kind": "job"}, "-cfg kind=job: use jobset, trainjob or volcano"),
        ((), {"namespace": "No Such"}, 'kubernetes.namespace: got "No Such"'),
        (("--outputs", "/elsewhere"), {}, "which is on no volume: it would be lost with the pod"),
    ],
)
def test_what_no_pod_has_a_place_for_is_refused(
    place: Place, tmp_path: Path, words: tuple[str, ...], cfg: dict[str, str], expected: str
) -> None:
    what = component(place, tmp_path / "c")
    with pytest.raises((LaunchError, ConfigError), match=re.escape(expected)):
        requested(what, "--name", "a", *words, **cfg)


# --- submitted ------------------------------------------------------------------------------------


def test_torchx_runs_describes_lists_logs_and_cancels(
    place: Place, workers: PodCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TITAN_RECIPES_OUTPUTS", str(place.outputs))
    torchx, words = runner(), ["--name", "a", "--outputs", str(place.volume)]
    what = component(place, tmp_path / "c", "plan.nodes=1", "training.steps=20")
    handle = torchx.run_component(what, words, "titan_kubernetes", {}, workspace="")
    assert handle == "titan_kubernetes://torchx/ml:a"
    layout = RunLayout(place.outputs / "a")
    assert read_record(layout).command[0] == "torchx"
    wait_for_end(layout)
    status = torchx.status(handle)
    assert status is not None
    assert status.state is AppState.SUCCEEDED
    listed = [(one.app_id, one.state) for one in torchx.list("titan_kubernetes")]
    assert listed == [("ml:a", AppState.SUCCEEDED)]
    lines = [*torchx.log_lines(handle, "trainer", k=0, regex="^step")]
    assert lines == [f"step {step}/20\n" for step in range(1, 21)]
    assert torchx.status("titan_kubernetes://torchx/ml:other") is None


def test_torchx_cancel_has_the_pods_save(place: Place, workers: PodCluster) -> None:
    (place.volume / "a").mkdir()
    (place.volume / "a" / "HOLD").touch()
    layout = start(place, "a", place.job("plan.nodes=1"))
    held = place.volume / "a" / "metrics.jsonl"
    until(lambda: held.exists() and held.read_text().count("\n") == HOLD_STEP, "the held step")
    until(lambda: run_status(layout).state.value == "RUNNING", "a run that runs")
    runner().cancel("titan_kubernetes://torchx/ml:a")
    while workers.pods():
        time.sleep(0.05)
    assert (place.volume / "a/checkpoints/step-00000003/manifest.json").exists()


def test_launch_follows_to_the_end_and_says_so(
    place: Place, workers: PodCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TITAN_RECIPES_OUTPUTS", str(place.outputs))  # the profile's are the pods'
    sets = ("plan.gpu='cpu'", "plan.gpus_per_node=1", "training.steps=4")
    words = [word for setting in sets for word in ("--set", setting)]
    done = call("launch", "llama3_debug", *words, "--cluster", place.profile, "--name", "a")
    assert done.exit_code == 0, done.output
    assert "a SUCCEEDED at step 4/4" in done.output
    layout = RunLayout(place.outputs / "a")
    assert read_job(layout.job).site.outputs == str(place.volume)
    assert read_record(layout).image == IMAGE
    assert sorted(path.name for path in layout.root.iterdir()) == [
        "component.py", "job.toml", "job.yaml", "kubernetes.json", "logs", "metrics.jsonl",
        "mirror", "run.json",
    ]  # fmt: skip
    where = submitted(layout)
    assert where is not None
    assert (where.number, where.run_dir) == (1, f"{place.volume}/a")
    shown = call("runs", "--outputs", place.outputs).output
    assert "SUCCEEDED" in shown


def test_claims_are_made_once_and_left_alone(api: ApiServer, place: Place) -> None:
    volume = Volume(claim="runs", path=str(place.volume), size="1Gi")
    for name in ("a", "b"):
        layout = start(place, name, place.job(volumes={"outputs": volume}))
        assert "PersistentVolumeClaim" in (layout.root / "pvc.yaml").read_text()
    assert [*api.objects[CLAIMS]] == ["runs"]
    assert [*api.objects[JOBSETS]] == ["a", "b"]


def test_claim_that_is_there_does_for_who_may_make_none(api: ApiServer, place: Place) -> None:
    volume = Volume(claim="runs", path=str(place.volume), size="1Gi")
    job = place.job(volumes={"outputs": volume})
    api.fail_next("POST", "persistentvolumeclaims", 403, times=2, message=NO_RIGHT)
    with pytest.raises(KubernetesError, match="not allowed to create persistentvolumeclaims"):
        start(place, "a", job)
    api.make(CLAIMS, {"metadata": {"name": "runs"}})
    start(place, "a", job)
    assert [*api.objects[JOBSETS]] == ["a"]


def test_runtime_belongs_to_its_trainjob_and_goes_with_it(api: ApiServer, place: Place) -> None:
    layout = start(place, "a", place.job(kind="trainjob"))
    (runtime,) = api.objects[RUNTIMES].values()
    (owner,) = runtime["metadata"]["ownerReferences"]
    assert owner["kind"] == "TrainJob"
    assert owner["uid"] == api.objects[TRAINJOBS]["a"]["metadata"]["uid"]
    call("cancel", layout.root, "--now")
    assert api.objects[RUNTIMES] == api.objects[TRAINJOBS] == {}


def test_trainjob_that_comes_before_the_webhook_knows_its_runtime_is_tried_again(
    api: ApiServer, place: Place
) -> None:
    said = 'admission webhook "validator" denied the request: "a" not found: '
    said += "specified trainingRuntime must be created before the TrainJob is created"
    api.fail_next("POST", "trainjobs", 403, message=said, times=2)
    start(place, "a", place.job(kind="trainjob"))
    assert [*api.objects[TRAINJOBS]] == [*api.objects[RUNTIMES]] == ["a"]
    assert [method for method, path in api.requests if "trainjobs" in path] == ["POST"] * 3


def test_runtime_without_its_trainjob_is_taken_back(api: ApiServer, place: Place) -> None:
    api.fail_next("POST", "trainjobs", 403, message=NO_RIGHT)
    with pytest.raises(KubernetesError, match="not allowed to create trainjobs"):
        start(place, "a", place.job(kind="trainjob"))
    assert api.objects[RUNTIMES] == {}
    assert [*place.outputs.iterdir()] == []


@pytest.mark.parametrize(("kind", "key"), [("jobset", JOBSETS), ("trainjob", TRAINJOBS)])
def test_object_whose_answer_was_lost_for_good_is_taken_back(
    api: ApiServer, place: Place, monkeypatch: pytest.MonkeyPatch, kind: str, key: Key
) -> None:
    monkeypatch.setattr(kubernetes_client, "BACKOFF_SECONDS", ())
    api.fail_next("POST", key[1], drop=True)
    with pytest.raises(KubernetesError, match="the connection broke off"):
        start(place, "a", place.job(kind=kind))
    assert api.objects[key] == api.objects.get(RUNTIMES, {}) == {}
    assert [*place.outputs.iterdir()] == []


def test_object_of_a_launch_that_ctrl_c_cut_off_is_taken_back(api: ApiServer, place: Place) -> None:
    def interrupt(kind: str, key: Key, thing: Object) -> None:
        """While it waits for the answer; the server gives none before it is asked again."""
        if (kind, key) == ("ADDED", JOBSETS):
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 20
            while ("GET", OBJECT_PATH) not in api.requests and time.monotonic() < deadline:
                time.sleep(0.02)

    api.on_change.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(place, "a", place.job())
    assert api.objects[JOBSETS] == {}
    assert [*place.outputs.iterdir()] == []


def test_object_that_may_be_left_behind_is_told_of(
    api: ApiServer,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(kubernetes_client, "BACKOFF_SECONDS", ())
    api.fail_next("POST", "jobsets", drop=True)
    api.fail_next("GET", "jobsets/a", 403, message=NO_RIGHT)
    with pytest.raises(KubernetesError, match="the connection broke off"):
        start(place, "a", place.job())
    told = capsys.readouterr().err
    assert told.startswith("warning: JobSet ml/a may be there: not allowed to get jobsets")
    assert told.endswith("; delete it: kubectl -n ml delete jobsets.jobset.x-k8s.io a\n")


@pytest.mark.parametrize(
    ("code", "expected"),
    [(401, "log in again"), (403, "not allowed to create jobsets.jobset.x-k8s.io"), (422, "422")],
)
def test_refused_launch_leaves_nothing_and_exits_with_2(
    api: ApiServer, place: Place, code: int, expected: str
) -> None:
    api.fail_next("POST", "jobsets", code, message=NO_RIGHT)
    done = call("launch", "llama3_debug", "--cluster", place.profile, "--name", "a",
                "--outputs", place.outputs)  # fmt: skip
    assert done.exit_code == 2
    assert done.output.count("error:") == 1
    assert expected in done.output
    assert [*place.outputs.iterdir()] == []


def test_name_that_is_taken_in_the_namespace_is_refused(api: ApiServer, place: Place) -> None:
    start(place, "a", place.job())
    other = replace(place, outputs=place.outputs.parent / "others")
    with pytest.raises(KubernetesError, match="already exists; choose another --name"):
        start(other, "a", place.job())


def test_launch_without_a_kubeconfig_or_the_package_says_so(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    words = ("launch", "llama3_debug", "--cluster", place.profile, "--outputs", place.outputs)
    assert "no kubeconfig there" in call(*words).output
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    refused = call(*words)
    assert install_command("kubernetes") in refused.output
    assert refused.exit_code == 2
    assert [*place.outputs.iterdir()] == []


def test_image_without_a_registry_is_noted(api: ApiServer, tmp_path: Path) -> None:
    _, note = as_pods(debug_job(), lambda key: key)
    assert note.startswith("image titan-recipes:")
    assert "set container.image in the profile" in note
    tagged = replace(debug_job(), site=Site(container=Container(image="registry.example/x:1")))
    assert as_pods(tagged, lambda key: key)[1].endswith("; name it by digest")
    pinned = replace(tagged, site=Site(container=Container(image=IMAGE)))
    assert as_pods(pinned, lambda key: key)[1] == ""


def test_resume_runs_the_image_that_the_first_pod_pulled(
    api: ApiServer, place: Place, workers: PodCluster, tmp_path: Path
) -> None:
    tag, another = "registry.example/titan-recipes:1", "registry.example/titan-recipes:2"
    job = place.job("plan.nodes=1", "training.steps=2")
    container = replace(job.site.container, image=tag)
    layout = start(place, "a", replace(job, site=replace(job.site, container=container)))
    wait_for_end(layout)
    assert read_record(layout).image == f"{tag}@{DIGEST}"
    assert call("resume", layout.root, "--set", "training.steps=4").exit_code == 0
    assert image_in(layout) == f"registry.example/titan-recipes@{DIGEST}"
    assert read_record(layout).image == f"{tag}@{DIGEST}"
    other = tmp_path / "other.toml"
    other.write_text(place.profile.read_text().replace(IMAGE, another))
    words = ("resume", layout.root, "--set", "training.steps=6", "--cluster", other)
    assert call(*words).exit_code == 0
    assert image_in(layout) == another
    assert read_record(layout).image == f"{another}@{DIGEST}"


def image_in(layout: RunLayout) -> str:
    """Of the newest submission's pods."""
    text = (layout.root / "job.yaml").read_text()
    return next(line.split()[-1].strip('"') for line in text.splitlines() if " image: " in line)


def test_resume_with_another_profile_moves_the_run(
    place: Place, workers: PodCluster, tmp_path: Path
) -> None:
    layout = start(place, "a", place.job("plan.nodes=1", "training.steps=20"))
    wait_for_end(layout)
    other = tmp_path / "other.toml"
    other.write_text(place.profile.read_text() + '\n[env]\nA = "1"\n')
    done = call("resume", layout.root, "--set", "training.steps=24", "--cluster", other)
    assert done.exit_code == 0, done.output
    job = read_job(layout.job)
    assert (job.env, job.origin.cluster) == ({"A": "1"}, "other")
    assert read_job(place.volume / "a" / "job.toml") == job
    refused = call("resume", layout.root, "--cluster", tmp_path / "none.toml")
    assert refused.exit_code == 2
