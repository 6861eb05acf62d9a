"""Values that would break YAML, a pod's command or a label: unchanged in the pod, or refused."""

import re
from dataclasses import replace

import pytest
import yaml
from manifests import documents, pods
from pod_jobs import KINDS, LIKENESS, job_of, submission_of

from titan_recipes.config.job import decode
from titan_recipes.config.kubernetes import Volume
from titan_recipes.errors import ConfigError
from titan_recipes.render import render_kubernetes

HOSTILE = (
    "a: b", "it's", 'say "x"', "- [a, {b", "#not a comment", "a\\b\\n", "on", "0x1F", "1e3", "~",
    "é ☃ 漢 \U0001f600", "\u2028\x85\u2029\ufeff", "$(HOME) $$(X) ${Y} $", "%TAG !!str &a *a",
    "{{ 7 * 7 }}", " a ", "---", "\t\x7f", "|", "",
)  # fmt: skip


def expanded(value: str) -> str:
    """What the kubelet makes of a word: `$(NAME)` is a variable's value, `$$` one `$`."""
    pieces = re.split(r"(\$\$|\$\([^)]*\))", value)
    return "".join(
        "$" if one == "$$" else "<a variable>" if one[:2] == "$(" else one for one in pieces
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", HOSTILE)
def test_text_reaches_the_pod_as_it_is(value: str, kind: str) -> None:
    affinity = {"nodeAffinity": {"key": value}, "weights": [value, {value: [value]}]}
    job = job_of(LIKENESS, kind, annotations={"example.com/note": value}, affinity=affinity)
    job = replace(job, env={"VALUE": value}, recipe=replace(job.recipe, name=value))
    text = render_kubernetes(job, submission_of(run_name=value))
    found = documents(text)
    assert [*yaml.load_all(text, Loader=yaml.CSafeLoader)] == found  # libyaml's own reading
    (pod,) = pods(found[0])
    (trainer,) = pod["spec"]["containers"]
    env = {entry["name"]: entry.get("value", "") for entry in trainer["env"]}
    assert expanded(env["VALUE"]) == value
    assert decode(trainer["command"][5]) == job
    assert pod["spec"]["affinity"] == affinity
    for metadata in (pod["metadata"], *(one["metadata"] for one in found)):
        assert metadata["annotations"]["example.com/note"] == value
        assert metadata["annotations"]["titan-recipes/run-name"] == value
        assert metadata["annotations"]["titan-recipes/recipe"] == f"{value}@{job.recipe.version}"
    assert all(line.isprintable() for line in text.split("\n"))


LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")


@pytest.mark.parametrize("value", HOSTILE)
def test_label_is_as_it_is_or_refused(value: str) -> None:
    job = job_of(LIKENESS, labels={"team": value}, node_selector={"pool": value})
    if not LABEL_VALUE.fullmatch(value):
        with pytest.raises(ConfigError) as caught:
            render_kubernetes(job, submission_of())
        whats = [problem.what for problem in caught.value.problems]
        assert whats == ["kubernetes.labels.team", "kubernetes.node_selector.pool"]
        assert len(str(caught.value).splitlines()) == 2
        return
    (found,) = documents(render_kubernetes(job, submission_of()))
    (pod,) = pods(found)
    assert found["metadata"]["labels"]["team"] == value
    assert pod["spec"]["nodeSelector"] == {"pool": value}


@pytest.mark.parametrize("value", HOSTILE)
def test_path_is_as_it_is_or_refused(value: str) -> None:
    volumes = {"outputs": Volume(path=f"/mnt/{value}/outputs")}
    job, run_dir = job_of(LIKENESS, volumes=volumes), f"/mnt/{value}/outputs/run"
    if ":" in value or not value.isprintable() or not value:
        with pytest.raises(ConfigError) as caught:
            render_kubernetes(job, submission_of(run_dir=run_dir))
        whats = [problem.what for problem in caught.value.problems]
        assert whats == ["kubernetes.volumes.outputs.path", "--outputs"]
        assert len(str(caught.value).splitlines()) == 2
        return
    (found,) = documents(render_kubernetes(job, submission_of(run_dir=run_dir)))
    (trainer,) = pods(found)[0]["spec"]["containers"]
    assert trainer["volumeMounts"][-1]["mountPath"] == f"/mnt/{value}/outputs"
    assert expanded(trainer["command"][7]) == run_dir
