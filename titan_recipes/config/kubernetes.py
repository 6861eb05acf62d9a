"""[kubernetes] of a cluster profile: where and in what pods a site's jobs run there.

Everything is checked here, on the laptop: a name that the server would refuse, or a volume that
checkpoints would be lost with, costs no submission. What a pod is made of is `render.pod`'s.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any, Literal

from titan_recipes.config.kubernetes_names import (
    SECRET_KEY,
    is_within,
    key_fault,
    label_fault,
    pages_fault,
    path_fault,
    quantity_fault,
    resource_fault,
    subdomain_fault,
    value_fault,
)
from titan_recipes.config.load import show
from titan_recipes.config.pod_overlay import overlay_problems, value_problems
from titan_recipes.config.schema.fields import (
    MinusOneOrMore,
    MinusOneOrPositive,
    NonNegative,
    Positive,
    PositiveFloat,
    section,
)
from titan_recipes.errors import Problem

POD_OUTPUTS = "/outputs"
"""Where run directories go in a pod, unless the profile's `outputs` says otherwise."""
MANAGED_BY = "app.kubernetes.io/managed-by"
OWN_KEYS = "titan-recipes/"
"""Labels and annotations that begin so are ours, and so is MANAGED_BY."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
TOPOLOGY_KEYS = {
    "preferred": "kueue.x-k8s.io/podset-preferred-topology",
    "required": "kueue.x-k8s.io/podset-required-topology",
    "exclusive": "alpha.jobset.sigs.k8s.io/exclusive-topology",
}
"""topology_mode -> the annotation that asks for it."""
SHM_PATH = "/dev/shm"
TMP_PATH = "/tmp"
OUR_VOLUMES = {"dev-shm": SHM_PATH, "tmp": TMP_PATH}
"""Volumes that every pod has -> where."""
FROM_SECRET = "secret:"
"""A secret's source: this, and the name and key of a Secret of the namespace, with '/' between."""
RESERVED_ENV = ("JOB_COMPLETION_INDEX", "TORCHX_JOB_ID", "NVIDIA_VISIBLE_DEVICES")
RESERVED_ENV_PREFIXES = ("PET_", "VC_", "VK_")
"""Variables of the controllers; Kubeflow Trainer refuses jobs that set its own."""
OF_ONE_NODE = ("ReadWriteOnce", "ReadWriteOncePod")


@section
class Toleration:
    """One of `tolerations`, in Kubernetes' own words."""

    key: str = ""
    """Key of the taint; "" = every taint, with operator = "Exists"."""
    operator: Literal["", "Exists", "Equal"] = ""
    """ "" = "Equal"."""
    value: str = ""
    """Value of the taint."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """ "" = every effect."""
    tolerationSeconds: MinusOneOrMore = -1
    """How long a NoExecute taint is borne; -1 = for good."""


@section
class Volume:
    """One of `volumes`: a claim, where it is mounted, and, with `size`, how to make it."""

    claim: str = ""
    """The PersistentVolumeClaim; "" = the volume's own name."""
    path: str
    """Where it is mounted."""
    read_only: bool = False
    """Mount it read-only."""
    size: str = ""
    """`pvc.yaml` makes a claim of this size; "" = it is there."""
    storage_class: str = ""
    """Of a claim that is made; "" = the cluster's default."""
    access_mode: Literal[
        "", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOnce", "ReadWriteOncePod"
    ] = ""
    """How many nodes may mount it; "" = not checked, and ReadWriteMany for one that is made."""

    def claim_of(self, name: str) -> str:
        """The claim of the volume of this name."""
        return self.claim or name


def _default_volumes() -> dict[str, Volume]:
    return {"outputs": Volume(claim="titan-recipes-outputs", path=POD_OUTPUTS)}


@section
class Kubernetes:
    """[kubernetes]: what a job becomes on a cluster, and what its pods ask for."""

    kind: Literal["jobset", "trainjob", "volcano"] = "jobset"
    """JobSet, TrainJob of Kubeflow Trainer v2, or Volcano's Job."""
    namespace: str = "default"
    """Where the objects are made."""
    context: str = ""
    """Context of the kubeconfig; "" = its current one."""
    queue: str = ""
    """Volcano's queue, else Kueue's LocalQueue; "" = Volcano's default one, else no Kueue."""
    service_account: str = ""
    """The pods' service account; its token is not mounted."""
    priority_class: str = ""
    """The pods' PriorityClass, which Kueue and Volcano go by too."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets that images are pulled with."""
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    """ "" = Kubernetes' own rule."""
    node_selector: dict[str, str] = field(default_factory=dict[str, str])
    """Labels that the nodes must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that the pods bear."""
    affinity: dict[str, Any] = field(default_factory=dict[str, Any])
    """The pods' affinity, in Kubernetes' own words."""
    labels: dict[str, str] = field(default_factory=dict[str, str])
    """More labels of all objects and pods."""
    annotations: dict[str, str] = field(default_factory=dict[str, str])
    """More annotations of all objects and pods."""
    topology: str = ""
    """Node label of the domain (rack, block) that a job's pods are to share; "" = any nodes."""
    topology_mode: Literal["preferred", "required", "exclusive"] = "preferred"
    """"exclusive" = one job a domain, by JobSet; the others are Kueue's."""
    gpu_resource: str = "nvidia.com/gpu"
    """What a GPU is called."""
    resources: dict[str, str | int] = field(default_factory=dict[str, str | int])
    """More that each pod asks for, and not more than: "rdma/hca" = 1, "hugepages-2Mi" = "5Gi"."""
    shm_gib: PositiveFloat = 16.0
    """Limit of /dev/shm, which lies in the pod's memory."""
    run_as_user: Positive = 1000
    """The pods' user id."""
    run_as_group: NonNegative = 1000
    """The pods' group id."""
    fs_group: MinusOneOrPositive = 1000
    """Group that the volumes are made to belong to; -1 = leave them as they are."""
    run_as_root: bool = False
    """Run as root with IPC_LOCK, for RDMA where the nodes limit locked memory."""
    read_only_root: bool = True
    """Mount the image read-only; /tmp can be written to anyhow."""
    max_restarts: NonNegative = 100
    """Starts of the gang after failures; the run's own count ends a failing one long before."""
    ttl_seconds: MinusOneOrMore = 7 * 24 * 3600
    """When the objects of a finished job are removed; -1 = never. A TrainJob stays."""
    volumes: dict[str, Volume] = field(default_factory=_default_volumes)
    """Name -> claim and path."""
    pod: dict[str, Any] = field(default_factory=dict[str, Any])
    """Laid over the pods' spec, for the rest; lists of things with names are merged by name."""


# --- checks ---------------------------------------------------------------------------------------


def kubernetes_problems(own: Kubernetes, where: str) -> Iterator[Problem]:
    """What in the table no Kubernetes would take, or would run otherwise than it reads."""
    yield from _name_problems(own, where)
    yield from _key_problems(own, where)
    yield from _toleration_problems(own.tolerations, where)
    yield from _topology_problems(own, where)
    yield from _resource_problems(own, where)
    yield from _volume_problems(own, where)
    if own.kind == "volcano" and own.max_restarts == 0:
        got = "got 0, which Volcano takes for 3"
        yield Problem(where, "kubernetes.max_restarts", got, "use 1 or more")
    yield from overlay_problems(own.pod, where, "kubernetes.pod", own.kind)
    yield from value_problems(own.affinity, where, "kubernetes.affinity")


def _name_problems(own: Kubernetes, where: str) -> Iterator[Problem]:
    if fault := label_fault(own.namespace):
        yield Problem(where, "kubernetes.namespace", f"got {show(own.namespace)}", fault)
    names = {
        "queue": own.queue,
        "service_account": own.service_account,
        "priority_class": own.priority_class,
        **{f"image_pull_secrets.{i}": name for i, name in enumerate(own.image_pull_secrets)},
    }
    for key, name in names.items():
        fault = subdomain_fault(name) if name or "." in key else ""
        if fault := fault or (value_fault(name) if key == "queue" else ""):  # it becomes a label
            yield Problem(where, f"kubernetes.{key}", f"got {show(name)}", fault)
    for name in {name for name in own.image_pull_secrets if own.image_pull_secrets.count(name) > 1}:
        what = "kubernetes.image_pull_secrets"
        yield Problem(where, what, f"names {show(name)} twice", "name each once")
    if not own.context.isprintable():
        yield Problem(where, "kubernetes.context", f"got {show(own.context)}", "must be one line")


def _key_problems(own: Kubernetes, where: str) -> Iterator[Problem]:
    tables = {
        "labels": own.labels,
        "annotations": own.annotations,
        "node_selector": own.node_selector,
    }
    for table, held in tables.items():
        for key, value in held.items():
            what = f"kubernetes.{table}.{key}"
            if fault := key_fault(key):
                yield Problem(where, what, "not a key of Kubernetes", fault)
            elif table != "node_selector" and (key == MANAGED_BY or key.startswith(OWN_KEYS)):
                yield Problem(where, what, "is set by titan-recipes itself", "remove it")
            elif key == QUEUE_LABEL:
                yield Problem(where, what, "has a key of its own", "use kubernetes.queue")
            elif key in TOPOLOGY_KEYS.values():
                yield Problem(where, what, "has a key of its own", "use kubernetes.topology")
            elif table != "annotations" and (fault := value_fault(value)):
                yield Problem(where, what, f"got {show(value)}", fault)
    yield from value_problems(own.annotations, where, "kubernetes.annotations")


def _toleration_problems(tolerations: Iterable[Toleration], where: str) -> Iterator[Problem]:
    for index, one in enumerate(tolerations):
        what = f"kubernetes.tolerations.{index}"
        if one.key and (fault := key_fault(one.key)):
            yield Problem(where, f"{what}.key", f"got {show(one.key)}", fault)
        if not one.key and one.operator != "Exists":
            yield Problem(where, f"{what}.key", "not set", 'name the taint, or operator = "Exists"')
        if one.operator == "Exists" and one.value:
            got = f'got {show(one.value)}, with operator = "Exists"'
            yield Problem(where, f"{what}.value", got, "remove one of them")
        elif fault := value_fault(one.value):
            yield Problem(where, f"{what}.value", f"got {show(one.value)}", fault)
        if one.tolerationSeconds >= 0 and one.effect != "NoExecute":
            got = "has no effect but with NoExecute"
            yield Problem(where, f"{what}.tolerationSeconds", got, 'set effect = "NoExecute"')


def _topology_problems(own: Kubernetes, where: str) -> Iterator[Problem]:
    what, mode = "kubernetes.topology", own.topology_mode
    if not own.topology:
        return
    if fault := key_fault(own.topology):
        yield Problem(where, what, f"got {show(own.topology)}", f"name a node label; {fault}")
    if own.kind == "volcano":
        got = 'has no effect with kind = "volcano"'
        yield Problem(where, what, got, 'use kubernetes.affinity, or kind = "jobset"')
    elif mode != "exclusive" and not own.queue:
        got = f"{mode}, without a queue: it is Kueue that places pods so"
        cure = 'set kubernetes.queue, or topology_mode = "exclusive"'
        yield Problem(where, what, got, cure)


def _resource_problems(own: Kubernetes, where: str) -> Iterator[Problem]:
    if "/" not in own.gpu_resource or resource_fault(own.gpu_resource):
        cure = "use the device plugin's name: nvidia.com/gpu"
        yield Problem(where, "kubernetes.gpu_resource", f"got {show(own.gpu_resource)}", cure)
    for name, asked in own.resources.items():
        what, quantity = f"kubernetes.resources.{name}", str(asked)
        if name == own.gpu_resource:
            yield Problem(where, what, "follows from the plan", "remove it")
        elif fault := resource_fault(name):
            yield Problem(where, what, "not the name of a resource", fault)
        elif fault := quantity_fault(quantity, whole="/" in name) or pages_fault(name, quantity):
            yield Problem(where, what, f"got {show(asked)}", fault)


def _volume_problems(own: Kubernetes, where: str) -> Iterator[Problem]:
    paths = {path: f'"{name}" of every pod' for name, path in OUR_VOLUMES.items()}
    made: dict[str, Volume] = {}
    for name, volume in own.volumes.items():
        what = f"kubernetes.volumes.{name}"
        if fault := label_fault(name):
            yield Problem(where, what, "not the name of a volume", fault)
        elif name in OUR_VOLUMES:
            yield Problem(where, what, "is a volume that every pod has", "choose another name")
        if fault := subdomain_fault(claim := volume.claim_of(name)):
            yield Problem(where, f"{what}.claim", f"got {show(claim)}", fault)
        if fault := path_fault(volume.path):
            yield Problem(where, f"{what}.path", f"got {show(volume.path)}", fault)
        elif volume.path in paths:
            got = f"got {show(volume.path)}, where {paths[volume.path]} is mounted"
            yield Problem(where, f"{what}.path", got, "mount it elsewhere")
        paths.setdefault(volume.path, f'"{name}"')
        if volume.size and (fault := quantity_fault(volume.size)):
            yield Problem(where, f"{what}.size", f"got {show(volume.size)}", fault)
        if volume.storage_class and (fault := subdomain_fault(volume.storage_class)):
            got = f"got {show(volume.storage_class)}"
            yield Problem(where, f"{what}.storage_class", got, fault)
        elif volume.storage_class and not volume.size:
            got = "has no effect on a claim that is there already"
            yield Problem(where, f"{what}.storage_class", got, "set size too, or remove it")
        if volume.size and claim in made:
            got = f'"{claim}" is made by another volume already'
            yield Problem(where, f"{what}.claim", got, "set size in one of them")
        if volume.size:
            made[claim] = volume
        if volume.access_mode == "ReadOnlyMany" and not volume.read_only:
            got = "ReadOnlyMany, but it is mounted to be written to"
            yield Problem(where, f"{what}.access_mode", got, "set read_only = true")


def outputs_problems(outputs: str, own: Kubernetes, where: str, what: str) -> Iterator[Problem]:
    """Whether a folder that is written to outlives its pods."""
    if fault := path_fault(outputs):
        yield Problem(where, what, f"got {show(outputs)}", fault)
        return
    volume = volume_at(outputs, own.volumes)
    if volume is None:
        mounted = ", ".join(one.path for one in own.volumes.values()) or "no path"
        got = f"got {show(outputs)}, which is on no volume: it would be lost with the pod"
        yield Problem(where, what, got, f"volumes are mounted at {mounted}")
    elif volume[1].read_only:
        got = f'got {show(outputs)}, on the volume "{volume[0]}", which is read-only'
        yield Problem(where, what, got, "remove read_only, or choose another folder")


def gang_problems(own: Kubernetes, nodes: int, where: str) -> Iterator[Problem]:
    """Volumes that the pods of a plan with several nodes can't all mount."""
    for name, volume in own.volumes.items():
        if nodes > 1 and volume.access_mode in OF_ONE_NODE:
            what = f"kubernetes.volumes.{name}.access_mode"
            got = f"{volume.access_mode}, but the plan has {nodes} nodes that all mount it"
            yield Problem(where, what, got, "use a ReadWriteMany claim, or a plan with one node")


def volume_at(path: str, volumes: Mapping[str, Volume]) -> tuple[str, Volume] | None:
    """(name, volume) that this path of a pod lies on: the one mounted nearest above it."""
    above = [(name, one) for name, one in volumes.items() if is_within(path, one.path)]
    return max(above, key=lambda pair: len(pair[1].path), default=None)


def secret_reference(source: str) -> tuple[str, str] | None:
    """(Secret, key) of `secret:NAME/KEY`, None where it is none."""
    name, slash, key = source.removeprefix(FROM_SECRET).partition("/")
    good = source.startswith(FROM_SECRET) and slash and not subdomain_fault(name)
    return (name, key) if good and not secret_key_fault(key) else None


def secret_key_fault(key: str) -> str:
    """Of a key in a Secret."""
    return "" if SECRET_KEY.fullmatch(key) else "use letters, digits, '-', '_' and '.'"


def reserved_env_problems(names: Iterable[str], where: str, table: str) -> Iterator[Problem]:
    """Variables that the controllers or the pod itself set."""
    for name in names:
        if name in RESERVED_ENV or name.startswith(RESERVED_ENV_PREFIXES):
            got = "is set by Kubernetes' controllers or by the pod itself"
            yield Problem(where, f"{table}.{name}", got, "remove it")
