"""job.yaml of every packaged recipe as each kind of job, held against the schemas of the kinds.

tests/golden/kubernetes/ holds the manifests of LIKENESS whole, and of every other recipe the lines
in which its manifests differ from those.
"""

import difflib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from manifests import documents, object_faults, pods, schema_faults
from pod_jobs import KINDS, LIKENESS, job_of, manifest, pod_of, submission_of

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.data_root import data_root
from titan_recipes.config.job import decode
from titan_recipes.config.kubernetes import Kubernetes, Volume
from titan_recipes.errors import BundleError, ConfigError, LaunchError
from titan_recipes.launch.node_options import parse_options
from titan_recipes.render import (
    RESOURCES,
    object_name,
    render_claims,
    render_kubernetes,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "kubernetes"
RECIPES = sorted(path.parent.name for path in (data_root() / "recipes").glob("*/recipe.toml"))
assert RECIPES, "no packaged recipes"
DISRUPTED = {"type": "DisruptionTarget", "status": "True"}
UPDATE = "UPDATE_GOLDEN=1 pytest tests/render/test_render_kubernetes.py"


def golden_text(recipe: str, kind: str) -> str:
    """The manifest, the encoded job left out: zlib's bytes may differ between versions."""
    text = render_kubernetes(job_of(recipe, kind), submission_of())
    return re.sub(r'(- "--job"\n +- )".*"', r"\1...", text)


def compare(path: Path, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"no golden text; {UPDATE}"
    assert text == path.read_text(), f"differs from {path}; if that is meant: {UPDATE}"


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_equals_its_golden_text(kind: str) -> None:
    compare(GOLDEN / f"{LIKENESS}.{kind}.yaml", golden_text(LIKENESS, kind))


def test_claims_equal_their_golden_text() -> None:
    compare(GOLDEN / "pvc.yaml", render_claims(job_of(LIKENESS)))


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != LIKENESS])
def test_other_recipes_differ_only_where_they_should(recipe: str) -> None:
    lines: list[str] = []
    for kind in KINDS:
        pair = (golden_text(LIKENESS, kind), golden_text(recipe, kind))
        found = difflib.unified_diff(*(text.splitlines() for text in pair), n=0, lineterm="")
        lines += [f"{kind} {line}" for line in [*found][2:] if line[0] in "+-"]
    compare(GOLDEN / f"{recipe}.txt", "\n".join(lines) + "\n")


def test_golden_files_are_all_of_a_recipe_that_is_there() -> None:
    expected = {f"{LIKENESS}.{kind}.yaml" for kind in KINDS} | {"pvc.yaml"}
    expected |= {f"{recipe}.txt" for recipe in RECIPES if recipe != LIKENESS}
    assert {path.name for path in GOLDEN.iterdir()} == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_manifest_holds_what_its_schemas_and_the_kubelet_ask_for(recipe: str, kind: str) -> None:
    found = manifest(recipe, kind)
    assert found[-1]["kind"] == RESOURCES[kind].kind
    assert found[-1]["apiVersion"] == RESOURCES[kind].api_version
    for document in found:
        assert schema_faults(document) == []
        assert object_faults(document) == []
    assert len(pods(found[0])) == 1


def test_schemas_find_what_is_not_theirs() -> None:
    """The guard of the test above: a schema that takes everything would prove nothing."""
    for kind in KINDS:
        document = manifest(LIKENESS, kind)[0]
        document["spec"]["suspendd"] = True
        (pod,) = pods(document)
        pod["spec"]["containers"][0]["imagePullPolice"] = "Always"
        found = "\n".join(schema_faults(document))
        assert "'suspendd' was unexpected" in found
        assert "'imagePullPolice' was unexpected" in found
        pod["spec"]["containers"][0]["volumeMounts"][0]["name"] = "none"
        pod["spec"]["containers"][0]["resources"]["limits"] = {"nvidia.com/gpu": "1.5"}
        assert len(object_faults(document)) == 3


# --- the gang -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "first", "variable"),
    [
        ("jobset", "a-run-trainer-0-0.a-run", "JOB_COMPLETION_INDEX"),
        ("trainjob", "a-run-node-0-0.a-run", "JOB_COMPLETION_INDEX"),
        ("volcano", "a-run-trainer-0.a-run", "VC_TASK_INDEX"),
    ],
)
def test_pod_runs_the_entry_point_that_meets_at_the_first_one(
    kind: str, first: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of("llama3_405b", kind)
    (trainer,) = pod_of(job, resumed=True)["containers"]
    assert trainer["command"][:4] == ["python", "-P", "-m", "titan_recipes.launch.node"]
    monkeypatch.setenv(variable, "5")
    options = parse_options(trainer["command"][4:])
    assert decode(options.job) == job
    assert (options.node_rank, options.nodes) == (5, job.plan.nodes)
    assert (options.master_addr, options.run_id) == (first, "a-run")
    assert (str(options.run_dir), options.resumed) == ("/outputs/a-run", True)
    assert "--in-pod" in trainer["command"]
    (handle,) = (entry for entry in trainer["env"] if entry["name"] == "TORCHX_JOB_ID")
    assert handle["value"] == "titan_kubernetes://titan-recipes/ml:a-run"


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_jobset_when_pods_fail_restarts_but_what_needs_a_person(kind: str) -> None:
    """The messages of the Job controller, and the rules as it and JobSet's apply them."""
    spec = manifest("llama3_405b", kind)[0]["spec"]
    jobset = spec if kind == "jobset" else spec["template"]["spec"]
    (replicated,) = jobset["replicatedJobs"]
    (pod,) = pods(replicated)
    (container,) = (one["name"] for one in pod["spec"]["containers"])
    rules = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
    assert pod["spec"]["restartPolicy"] == "Never"
    assert replicated["template"]["spec"]["backoffLimit"] == 0
    assert replicated["template"]["spec"]["podReplacementPolicy"] == "Failed"

    def action(code: int, disrupted: bool = False) -> str:
        reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        for index, rule in enumerate(rules):
            codes = rule.get("onExitCodes", {"values": [], "containerName": container})
            assert codes["containerName"] == container
            if code in codes["values"]:
                what = f"Container {container} for pod ml/p failed with exit code {code}"
            elif disrupted and DISRUPTED in rule.get("onPodConditions", []):
                what = "Pod ml/p has condition DisruptionTarget"
            else:
                continue
            reason = "PodFailurePolicy"
            message = f"{what} matching {rule['action']} rule at index {index}"
            break
        for rule in jobset["failurePolicy"]["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if reason in rule["onJobFailureReasons"] and any(
                re.search(pattern, message) for pattern in patterns
            ):
                return rule["action"]
        return "RestartJobSet"

    assert [action(code) for code in (2, 3)] == ["FailJobSet"] * 2
    assert action(2, disrupted=True) == "FailJobSet"
    ignored = "RestartJobSetAndIgnoreMaxRestarts"
    assert [action(143), action(143, True), action(137, True)] == [ignored] * 3
    assert [action(code) for code in (1, 137, 23, 32)] == ["RestartJobSet"] * 4
    assert jobset["failurePolicy"]["maxRestarts"] == 100
    assert jobset["failurePolicy"]["restartStrategy"] == "BlockingRecreate"


def test_volcano_when_pods_fail_restarts_but_what_needs_a_person() -> None:
    spec = manifest("llama3_405b", "volcano")[0]["spec"]
    (task,) = spec["tasks"]
    assert task["policies"] == [
        {"exitCode": 2, "action": "AbortJob"},
        {"exitCode": 3, "action": "AbortJob"},
        {"event": "PodEvicted", "action": "RestartJob"},
        {"event": "PodFailed", "action": "RestartJob"},
    ]
    assert (spec["minAvailable"], task["replicas"], spec["maxRetry"]) == (64, 64, 100)
    assert (spec["queue"], spec["schedulerName"]) == ("team", "volcano")


def test_trainjob_is_one_that_kubeflow_trainer_takes() -> None:
    runtime, job = manifest("llama3_405b", "trainjob")
    name = runtime["metadata"]["name"]
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": name,
    }
    assert job["metadata"]["name"] == name
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    step = "trainer.kubeflow.org/trainjob-ancestor-step"
    assert (replicated["name"], replicated["template"]["metadata"]["labels"][step]) == (
        "node",
        "trainer",
    )
    text = json.dumps(runtime)
    assert "PET_" not in text
    assert "ttlSecondsAfterFinished" not in text
    assert runtime["spec"]["mlPolicy"] == {"numNodes": job["spec"]["trainer"]["numNodes"]}


# --- names, and what no cluster would take --------------------------------------------------------


def test_object_name_when_it_is_legal_is_the_runs_own() -> None:
    assert object_name("llama-8b-1") == "llama-8b-1"
    assert object_name("llama-8b-1", 2) == "llama-8b-1-r2"


def test_object_name_is_legal_short_and_its_own() -> None:
    names = [
        "a_b", "a.b", "a-b", "20251121", "run-20251121", "_", "-", "a" * 63, "a" * 62, "a-r2", "a",
        "a_b-r2", object_name("a_b"), f"{object_name('a_b')}-r2", "a--b", "A-b", "été", "deep-x1",
        "llama3_8b_lora-20251121-093000", "llama3_8b_lora-20251121-093001",
    ]  # fmt: skip
    made = {object_name(name, number): (name, number) for name in names for number in (1, 2, 999)}
    assert len(made) == 3 * len(names)
    for name in made:
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(f"{name}-trainer-0-99999-abcde") <= 63


def test_render_when_values_are_wrong_says_all_of_it_at_once() -> None:
    job = job_of("llama3_405b", pod={"restartPolicy": "Always"}, namespace="Not_Legal")
    volumes = {"outputs": Volume(path="/outputs", access_mode="ReadWriteOnce")}
    site = replace(
        job.site,
        secrets={"A": "env", "B": "secret:b/c"},
        kubernetes=replace(job.site.kubernetes, volumes=volumes),
    )
    job = replace(job, site=site, env={"PET_NNODES": "3", "B": "x"})
    with pytest.raises(ConfigError) as caught:
        render_kubernetes(job, submission_of(run_dir="/elsewhere/run"))
    assert [problem.what for problem in caught.value.problems] == [
        "kubernetes.namespace",
        "kubernetes.pod.restartPolicy",
        "kubernetes.volumes.outputs.access_mode",
        "secrets.A",
        "env.PET_NNODES",
        "--outputs",
        "env.B",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_render_without_a_profile_keeps_the_run_on_a_claim(kind: str) -> None:
    job = find_bundle("llama3_8b").resolve().job
    job = replace(job, site=replace(job.site, kubernetes=Kubernetes(kind=kind)))
    found = documents(render_kubernetes(job, submission_of()))
    assert [one for each in found for one in (*schema_faults(each), *object_faults(each))] == []
    (pod,) = pods(found[0])
    claim = {"claimName": "titan-recipes-outputs"}
    assert {"name": "outputs", "persistentVolumeClaim": claim} in pod["spec"]["volumes"]
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert {one["metadata"]["namespace"] for one in found} == {"default"}
    assert "suspend" not in found[-1]["spec"]


@pytest.mark.parametrize("name", ["", "1a", "A", "a_b", "a-", "a" * 41])
def test_render_when_the_objects_name_is_illegal_says_so(name: str) -> None:
    with pytest.raises(LaunchError, match="object name"):
        render_kubernetes(job_of(LIKENESS), submission_of(object_name=name))


@pytest.mark.parametrize("image", ["", "a b", "a\nb"])
def test_render_when_there_is_no_image_says_so(image: str) -> None:
    with pytest.raises(LaunchError, match=r"container\.image"):
        render_kubernetes(job_of(LIKENESS), submission_of(image=image))


def test_render_when_the_bundle_has_its_own_template_takes_it(tmp_path: Path) -> None:
    (tmp_path / "jobset.yaml.j2").write_text("name: {{ name | yaml }}\n")
    assert render_kubernetes(job_of(LIKENESS), submission_of(), [tmp_path]) == 'name: "a-run"\n'
    (tmp_path / "jobset.yaml.j2").write_text("{{ no_such_value }}")
    with pytest.raises(BundleError, match=r"jobset\.yaml\.j2, from .*no_such_value"):
        render_kubernetes(job_of(LIKENESS), submission_of(), [tmp_path])


def test_claims_are_made_only_where_the_profile_gives_a_size() -> None:
    volumes = {
        "outputs": Volume(path="/outputs", size="500Gi", access_mode="ReadWriteOnce"),
        "data": Volume(claim="corpus", path="/data"),
        "cache": Volume(path="/cache", size="1Ti"),
    }
    found = documents(render_claims(job_of(LIKENESS, volumes=volumes)))
    assert [fault for one in found for fault in (*schema_faults(one), *object_faults(one))] == []
    specs = {one["metadata"]["name"]: one["spec"] for one in found}
    assert specs == {
        "outputs": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "500Gi"}},
        },
        "cache": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Ti"}}},
    }
    assert render_claims(job_of(LIKENESS, volumes={"outputs": Volume(path="/outputs")})) == ""
