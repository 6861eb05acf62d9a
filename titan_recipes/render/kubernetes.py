"""job.yaml and pvc.yaml: a job as the objects of a Kubernetes cluster, whatever its kind there.

One gang of pods, one a node of the plan, that starts and restarts as a whole. The texts are pure
functions of the job: no server, no kubeconfig and no daemon is asked. What the kinds have in common
is computed here and in `render.pod`; how each restarts stands in its template in k8s/.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from titan_recipes.config.job import Job, encode
from titan_recipes.config.kubernetes import (
    MANAGED_BY,
    OWN_KEYS,
    QUEUE_LABEL,
    TOPOLOGY_KEYS,
    gang_problems,
    kubernetes_problems,
    outputs_problems,
    reserved_env_problems,
)
from titan_recipes.config.kubernetes_names import label_fault
from titan_recipes.config.site import env_problems, secret_problems
from titan_recipes.errors import BundleError, ConfigError, LaunchError, Problem
from titan_recipes.render.environment import environment
from titan_recipes.render.pod import pod_spec

JOB_YAML = "job.yaml"
PVC_YAML = "pvc.yaml"
SESSION_KUBERNETES = "titan_kubernetes://titan-recipes"
"""What torchx's handle of such a job begins with."""
TRAINER = "trainer"
RUN_LABEL = f"{OWN_KEYS}run"
"""Label of all objects and pods of a run: its first submission's name."""
SUBMISSION_LABEL = f"{OWN_KEYS}submission"
"""Label of the objects and pods of one submission: its name."""
RUN_NAME, RUN_DIR = f"{OWN_KEYS}run-name", f"{OWN_KEYS}run-dir"
RECIPE, DIGEST, PLAN = f"{OWN_KEYS}recipe", f"{OWN_KEYS}digest", f"{OWN_KEYS}plan"
"""Annotations."""

TRAINER_STEP = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
"""Label by which Kubeflow Trainer knows the job that trains among a runtime's."""
NAME_LENGTH = 40
"""Of an object: `<name>-trainer-0-<index>-<5 letters>` is a pod's name and has 63 at most."""
MOST_NODES = 100_000
RESUMED_SUFFIX = re.compile(r".*-r\d+")
HASHED_SUFFIX = re.compile(r".*-x[0-9a-f]{6}")


@dataclass(frozen=True, slots=True)
class ApiResource:
    """Where the API server keeps a kind of object; group "" = the core's."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As manifests write it."""
        return f"{self.group}/{self.version}" if self.group else self.version


RESOURCES = {
    "jobset": ApiResource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet"),
    "trainjob": ApiResource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob"),
    "volcano": ApiResource("batch.volcano.sh", "v1alpha1", "jobs", "Job"),
}
"""kind of the profile -> the object that is the job."""
RUNTIME = ApiResource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime")
"""What a TrainJob needs beside it, under the same name; it comes first in job.yaml."""
CLAIM = ApiResource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")


@dataclass(frozen=True, slots=True)
class Gang:
    """What a kind calls its parts; the DNS name of pod 0 and its rank's variable follow."""

    container: str
    """The trainer's container."""
    first_pod: str
    """DNS name of pod 0 in the namespace, {name} being the object's."""
    rank_env: str
    """Variable of a pod that holds its place among the nodes."""


GANGS = {
    "jobset": Gang(TRAINER, "{name}-trainer-0-0.{name}", "JOB_COMPLETION_INDEX"),
    # Kubeflow Trainer looks for a job and a container of this name.
    "trainjob": Gang("node", "{name}-node-0-0.{name}", "JOB_COMPLETION_INDEX"),
    "volcano": Gang(TRAINER, "{name}-trainer-0.{name}", "VC_TASK_INDEX"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSubmission:
    """What job.yaml says beside the job."""

    object_name: str
    """See `object_name`."""
    run_name: str
    """The run's name, as it was given."""
    run_dir: str
    """The run directory as the pods see it."""
    image: str
    """The container image, by digest where it is known."""
    resumed: bool = False
    """A person asked for it: failures before it do not count."""


def object_name(run_name: str, number: int = 1) -> str:
    """A submission's name: legal, short enough for all that is named after it, and its own.

    number: which submission of the run it is; a `resume` is one more. A run whose name can't stand
    as it is, or could be taken for another one's, gets a hash of it.
    """
    suffix = f"-r{number}" if number > 1 else ""
    room = NAME_LENGTH - len("-r999")
    legal = re.sub(r"[^a-z0-9]+", "-", run_name.lower()).strip("-")
    legal = legal if legal[:1].isalpha() else f"run-{legal}".rstrip("-")
    alike = RESUMED_SUFFIX.fullmatch(legal) or HASHED_SUFFIX.fullmatch(legal)
    if legal != run_name or alike or len(legal) > room:
        digest = hashlib.sha256(run_name.encode()).hexdigest()[:6]
        legal = f"{legal[: room - len(digest) - 2].rstrip('-')}-x{digest}"
    return f"{legal}{suffix}"


def handle_of(namespace: str, name: str) -> str:
    """torchx's handle of a submission; what follows SESSION_KUBERNETES/ is its app id."""
    return f"{SESSION_KUBERNETES}/{namespace}:{name}"


def first_pod(kind: str, name: str) -> str:
    """DNS name, in the namespace, of the pod that the others meet at."""
    return GANGS[kind].first_pod.format(name=name)


def render_kubernetes(job: Job, submission: PodSubmission, search_path: Sequence[Path] = ()) -> str:
    """The objects of a submission, as YAML documents in the order to make them in.

    Raises ConfigError for what no cluster would take, LaunchError for an image or a node count that
    none could, BundleError where a bundle's own template can't be rendered.
    """
    own, name = job.site.kubernetes, submission.object_name
    where = job.origin.cluster or "cluster"
    _check(job, submission, where)
    gang = GANGS[own.kind]
    pod = pod_spec(
        job,
        image=submission.image,
        command=[*_command(job, submission)],
        handle=handle_of(own.namespace, name),
        where=where,
    )
    pod["containers"][0]["name"] = gang.container
    labels, annotations = _marks(job, submission)
    topology = {TOPOLOGY_KEYS[own.topology_mode]: own.topology} if own.topology else {}
    exclusive = topology if own.topology_mode == "exclusive" else {}
    values: dict[str, Any] = {
        "title": f"{job.recipe_id}, plan {job.origin.plan}, run {submission.run_name}",
        "name": name,
        "namespace": own.namespace,
        "labels": labels,
        "step_labels": labels | TRAINER_STEP,
        "queue_labels": labels | ({QUEUE_LABEL: own.queue} if own.queue else {}),
        "annotations": annotations,
        "gang_annotations": annotations | exclusive,
        "pod_annotations": annotations | ({} if exclusive else topology),
        "nodes": job.plan.nodes,
        "queue": own.queue,
        "priority_class": own.priority_class,
        "max_restarts": own.max_restarts,
        "ttl_seconds": own.ttl_seconds,
        "pod": pod,
    }
    return _rendered(f"{own.kind}.yaml.j2", values, search_path)


def render_claims(job: Job, search_path: Sequence[Path] = ()) -> str:
    """The claims that the profile asks to be made, as YAML documents; "" where there are none.

    They outlive the runs, and belong to none.
    """
    own = job.site.kubernetes
    claims = [
        {
            "name": volume.claim_of(name),
            "access_mode": volume.access_mode or "ReadWriteMany",
            "size": volume.size,
            "storage_class": volume.storage_class,
        }
        for name, volume in own.volumes.items()
        if volume.size
    ]
    if not claims:
        return ""
    if problems := [*kubernetes_problems(own, job.origin.cluster or "cluster")]:
        raise ConfigError(problems)
    labels = {MANAGED_BY: "titan-recipes", **own.labels}
    values = {
        "claims": claims,
        "namespace": own.namespace,
        "labels": labels,
        "annotations": own.annotations,
    }
    return _rendered(f"{PVC_YAML}.j2", values, search_path)


def _rendered(template: str, values: dict[str, Any], search_path: Sequence[Path]) -> str:
    places = ", ".join(str(path) for path in search_path) or "the package"
    try:
        return environment(search_path).get_template(template).render(values)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise BundleError(f"{template}, from {places}: {error}") from error


def _check(job: Job, submission: PodSubmission, where: str) -> None:
    site, own = job.site, job.site.kubernetes
    problems: list[Problem] = [
        *kubernetes_problems(own, where),
        *gang_problems(own, job.plan.nodes, where),
        *secret_problems(site, "kubernetes", where),
        *env_problems(job.env, where),
        *reserved_env_problems(job.env, where, "env"),
        *reserved_env_problems(site.secrets, where, "secrets"),
        *outputs_problems(submission.run_dir, own, where, "--outputs"),
    ]
    for name in job.env.keys() & site.secrets.keys():
        problems.append(Problem(where, f"env.{name}", "is in [secrets] too", "remove one"))
    if problems:
        raise ConfigError(problems)
    image, name = submission.image, submission.object_name
    if label_fault(name) or not name[0].isalpha() or len(name) > NAME_LENGTH:
        cure = f"at most {NAME_LENGTH} lower-case letters, digits and '-', a letter first"
        raise LaunchError(f"object name {name!r}: use {cure}")
    if not image or not image.isprintable() or " " in image:
        raise LaunchError(f"container.image: got {image!r}; name an image that the nodes can pull")
    if job.plan.nodes > MOST_NODES:
        got = f"{job.plan.nodes} nodes would have pod names of more than 63 characters"
        raise LaunchError(f"plan.nodes: {got}; use at most {MOST_NODES}")


def _marks(job: Job, submission: PodSubmission) -> tuple[dict[str, str], dict[str, str]]:
    """(labels, annotations) of all objects and pods."""
    own = job.site.kubernetes
    labels = {
        MANAGED_BY: "titan-recipes",
        RUN_LABEL: object_name(submission.run_name),
        SUBMISSION_LABEL: submission.object_name,
        **own.labels,
    }
    annotations = {
        RUN_NAME: submission.run_name,
        RUN_DIR: submission.run_dir,
        RECIPE: job.recipe_id,
        DIGEST: job.origin.digest,
        PLAN: job.origin.plan,
        **own.annotations,
    }
    return labels, annotations


def _command(job: Job, submission: PodSubmission) -> Iterator[str]:
    """What the trainer's container runs: the node entry point."""
    own, name = job.site.kubernetes, submission.object_name
    yield from (job.site.container.python, "-P", "-m", "titan_recipes.launch.node")
    yield from ("--job", encode(job))
    yield from ("--run-dir", submission.run_dir)
    yield from ("--nodes", str(job.plan.nodes))
    yield from ("--node-rank-env", GANGS[own.kind].rank_env)
    yield from ("--master-addr", first_pod(own.kind, name))
    yield from ("--run-id", name)
    yield "--in-pod"
    if submission.resumed:
        yield "--resumed"
