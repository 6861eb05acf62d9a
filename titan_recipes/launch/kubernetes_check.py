"""What of a cluster profile does not fit a Kubernetes cluster, as its API server tells.

Asked are the rights that following and stopping a run needs, whether what the profile names is
there, and then the server is to take the objects of a small run without keeping them: a dry run
over there, in which schemas, webhooks and quotas have their word. Nothing is made, and of a Secret
only whether there is one.
"""

from collections.abc import Iterator

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.cluster import Cluster
from titan_recipes.config.kubernetes import Kubernetes, secret_reference
from titan_recipes.errors import Problem
from titan_recipes.launch.kubernetes_client import EVENT, POD, Api, ApiResource, connect
from titan_recipes.launch.kubernetes_errors import EXISTS, KubernetesError, NotInstalled
from titan_recipes.launch.kubernetes_state import WORKLOADS
from titan_recipes.launch.kubernetes_submission import (
    UNSEEN_RUNTIME,
    documents,
    manifests,
    pods_image,
    pods_outputs,
)
from titan_recipes.launch.site_report import Finding, Report, report_of
from titan_recipes.render import RESOURCES, PodSubmission, object_name
from titan_recipes.render.kubernetes import CLAIM, RUNTIME

TRIAL_RECIPE = "llama3_debug"
TRIAL_NAME = "titan-recipes-check"
ASK = "ask whoever runs the cluster for a role that may"
MAKE = "make it, or name one that is there"
SERVICE_ACCOUNT = ApiResource("", "v1", "serviceaccounts", "ServiceAccount")
SECRET = ApiResource("", "v1", "secrets", "Secret")
PRIORITY_CLASS = ApiResource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass")
VOLCANO_QUEUE = ApiResource("scheduling.volcano.sh", "v1beta1", "queues", "Queue")
LOCAL_QUEUES = [
    ApiResource("kueue.x-k8s.io", version, "localqueues", "LocalQueue")
    for version in ("v1beta2", "v1beta1")
]
"""Kueue's, as newer and older releases of it have them."""

Named = tuple[str, tuple[ApiResource, ...], str, str]
"""(key of the profile, the object's kind in its versions, its namespace or "", its name)."""
Right = tuple[str, ApiResource, str, str]
"""(verb, kind, subresource or "", what for)."""


def check(where: str, cluster: Cluster) -> Report:
    """Compare a profile with its cluster. where: the profile's name.

    Raises LaunchError where the API server can't be asked, ConfigError for a profile that no
    cluster would fit.
    """
    own = cluster.kubernetes
    api = connect(own.context)
    site = f"{api.host} (Kubernetes {api.server_version()})"
    findings = [*_rights(where, own, api)]
    may_create = not any(is_problem for is_problem, _ in findings)
    findings += _named(where, cluster, api)
    taken = list[str]()
    if may_create:
        findings += _trial(where, cluster, api, taken)
    is_taken = may_create and not any(is_problem for is_problem, _ in findings)
    said = f"namespace {own.namespace} takes {', '.join(taken)}" if is_taken else ""
    return report_of(site, findings, said)


# --- rights ---------------------------------------------------------------------------------------


def _rights(where: str, own: Kubernetes, api: Api) -> Iterator[Finding]:
    for verb, resource, part, purpose in _needed(own):
        if not api.allows(verb, resource, own.namespace, part):
            what = f"{resource.plural}{f'.{resource.group}' if resource.group else ''}"
            got = f"you may not {verb} {what}{f'/{part}' if part else ''}, which {purpose} needs"
            yield True, Problem(where, f"namespace {own.namespace}", got, ASK)
    useful = [EVENT, *(WORKLOADS[:1] if own.queue and own.kind != "volcano" else ())]
    for resource in useful:
        if not api.allows("list", resource, own.namespace):
            got = f"you may not list {resource.plural}: `status` says less of what a run waits for"
            yield False, Problem(where, f"namespace {own.namespace}", got)


def _needed(own: Kubernetes) -> Iterator[Right]:
    kinds = [RESOURCES[own.kind], *([RUNTIME] if own.kind == "trainjob" else [])]
    for resource in kinds:
        yield "create", resource, "", "launching"
        yield "get", resource, "", "`status`"
        yield "delete", resource, "", "`cancel`"
    yield "list", POD, "", "following"
    yield "watch", POD, "", "following"
    yield "get", POD, "log", "following"
    yield "delete", POD, "", "`cancel --now`"
    if any(volume.size for volume in own.volumes.values()):
        yield "create", CLAIM, "", "a volume with a size"


# --- what the profile names -----------------------------------------------------------------------


def _named(where: str, cluster: Cluster, api: Api) -> Iterator[Finding]:
    for key, versions, namespace, name in _names(cluster):
        kind = versions[0].kind
        try:
            is_there = api.exists(versions, namespace, name)
        except NotInstalled as error:
            yield True, Problem(where, key, f'got "{name}": {error}')
        except KubernetesError as error:
            yield False, Problem(where, key, f'{kind} "{name}" could not be looked for: {error}')
        else:
            if not is_there:
                place = f" in namespace {namespace}" if namespace else ""
                yield True, Problem(where, key, f'no {kind} "{name}"{place}', MAKE)


def _names(cluster: Cluster) -> Iterator[Named]:
    own = cluster.kubernetes
    space = own.namespace
    if own.service_account:
        yield "kubernetes.service_account", (SERVICE_ACCOUNT,), space, own.service_account
    if own.priority_class:
        yield "kubernetes.priority_class", (PRIORITY_CLASS,), "", own.priority_class
    if own.queue and own.kind == "volcano":
        yield "kubernetes.queue", (VOLCANO_QUEUE,), "", own.queue
    elif own.queue:
        yield "kubernetes.queue", tuple(LOCAL_QUEUES), space, own.queue
    for name in own.image_pull_secrets:
        yield "kubernetes.image_pull_secrets", (SECRET,), space, name
    for variable, source in cluster.secrets.items():
        if reference := secret_reference(source):
            yield f"secrets.{variable}", (SECRET,), space, reference[0]
    for name, volume in own.volumes.items():
        if not volume.size:
            yield f"kubernetes.volumes.{name}.claim", (CLAIM,), space, volume.claim_of(name)


# --- a run ----------------------------------------------------------------------------------------


def _trial(where: str, cluster: Cluster, api: Api, taken: list[str]) -> Iterator[Finding]:
    """Have the server take a small run's objects, and keep none; taken: the kinds that it took."""
    job = find_bundle(TRIAL_RECIPE).resolve(cluster=cluster, cluster_name=where).job
    own = cluster.kubernetes
    submission = PodSubmission(
        object_name=object_name(TRIAL_NAME),
        run_name=TRIAL_NAME,
        run_dir=f"{pods_outputs(job)}/{TRIAL_NAME}",
        image=pods_image(job),
    )
    kinds = {one.kind: one for one in (RESOURCES[own.kind], RUNTIME, CLAIM)}
    for text in manifests(job, submission).values():
        for body in documents(text):
            kind = body["kind"]
            try:
                api.create(kinds[kind], own.namespace, body, dry_run=True)
            except KubernetesError as error:
                if UNSEEN_RUNTIME.search(str(error)):
                    got = "not tried: Trainer takes one only where its runtime is kept"
                    yield False, Problem(where, kind, got)
                    continue
                if error.status != EXISTS:
                    yield True, Problem(where, kind, str(error))
                    continue
            taken.append(kind)
