"""The pod that a node of a job is on Kubernetes, as plain data, with the profile's overlay.

It can do little: no root, no capabilities, no token, an image that can't be written to. What it
asks for it also gets at most, so that nothing else on the node takes it away. Its one process is
the node entry point, which is told to stop and has the time to save.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

from titan_recipes.config.job import Job
from titan_recipes.config.kubernetes import (
    SHM_PATH,
    TMP_PATH,
    Kubernetes,
    Toleration,
    secret_reference,
)
from titan_recipes.config.kubernetes_names import NATIVE_RESOURCES
from titan_recipes.config.pod_overlay import TRAINER
from titan_recipes.errors import ConfigError, Problem
from titan_recipes.render.sbatch import asks_for_gpus

LEFT_OF_NODE = 0.95
"""What of a machine's cores and memory pods can have: the kubelet and its like keep some."""
SAVE_MARGIN_SECONDS = 30
"""Beside fault_tolerance.grace_seconds: to end the ranks and to say how it went."""
MIB = 1024
"""Of a GiB."""
NO_GPUS = "void"
"""For NVIDIA's runtime, which else shows all GPUs to an image that asks for none."""
MERGED_BY = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
}
"""Lists that an overlay adds to -> what tells their items apart; it replaces the other lists."""


def grace_seconds(job: Job) -> int:
    """From SIGTERM to SIGKILL."""
    return math.ceil(job.fault_tolerance.grace_seconds) + SAVE_MARGIN_SECONDS


def literal(text: str) -> str:
    """A word of a command, or a variable's value, in which `$(NAME)` stands for itself."""
    return text.replace("$", "$$")


def pod_spec(
    job: Job, *, image: str, command: list[str], handle: str, where: str
) -> dict[str, Any]:
    """The spec of every pod; its container is the trainer's.

    command, handle: what the container runs, and torchx's handle of the job; where: names the
    profile in messages. Raises ConfigError for an overlay that does not fit.
    """
    own = job.site.kubernetes
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_seconds(job),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _pod_security(own),
        **({"serviceAccountName": own.service_account} if own.service_account else {}),
        **({"priorityClassName": own.priority_class} if own.priority_class else {}),
        **({"nodeSelector": own.node_selector} if own.node_selector else {}),
        **({"tolerations": [*map(_toleration, own.tolerations)]} if own.tolerations else {}),
        **({"affinity": own.affinity} if own.affinity else {}),
    }
    if own.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in own.image_pull_secrets]
    asked = resources(job)
    if any(name.startswith("hugepages-") for name in asked) and not {"cpu", "memory"} & {*asked}:
        got = "hugepages, without cpu or memory, which Kubernetes wants beside them"
        cure = 'add memory = "..." to it, or hardware.memory_gib and gpus_per_node to the profile'
        raise ConfigError([Problem(where, "kubernetes.resources", got, cure)])
    spec["containers"] = [
        {
            "name": TRAINER,
            "image": image,
            **({"imagePullPolicy": own.image_pull_policy} if own.image_pull_policy else {}),
            "command": [literal(word) for word in command],
            "env": [*_env(job, handle)],
            **({"resources": {"requests": asked, "limits": asked}} if asked else {}),
            "securityContext": _container_security(own)
            | {"readOnlyRootFilesystem": own.read_only_root},
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [*_mounts(own)],
        }
    ]
    spec["volumes"] = [*_volumes(own)]
    if problems := [*_conflicts(spec["containers"][0], own, where)]:
        raise ConfigError(problems)
    merged = cast(dict[str, Any], _merged(spec, own.pod))
    if merged.get("hostNetwork"):
        # Else such pods ask the node's own name server, which knows none of the pods' names.
        merged.setdefault("dnsPolicy", "ClusterFirstWithHostNet")
    if "initContainers" in merged:
        merged["initContainers"] = [
            beside
            | {"securityContext": _container_security(own) | beside.get("securityContext", {})}
            for beside in merged["initContainers"]
        ]
    if problems := [*_overlay_faults(merged, where)]:
        raise ConfigError(problems)
    return merged


# --- what it may do -------------------------------------------------------------------------------


def _pod_security(own: Kubernetes) -> dict[str, Any]:
    group = {"fsGroup": own.fs_group, "fsGroupChangePolicy": "OnRootMismatch"}
    return {
        "runAsNonRoot": not own.run_as_root,
        "runAsUser": 0 if own.run_as_root else own.run_as_user,
        "runAsGroup": own.run_as_group,
        **(group if own.fs_group > 0 else {}),
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security(own: Kubernetes) -> dict[str, Any]:
    # A capability that is added takes effect for root alone.
    added = {"add": ["IPC_LOCK"]} if own.run_as_root else {}
    return {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], **added},
    }


# --- what it gets ---------------------------------------------------------------------------------


def resources(job: Job) -> dict[str, str]:
    """What the trainer asks for, and gets at most: its GPUs, their share of the machine, the rest.

    A plan without GPUs asks for what the profile's `resources` say of cores, memory and disk: it
    needs no network cards and huge pages, and may run where there are none.
    """
    have, own = job.site.hardware, job.site.kubernetes
    gpus = job.plan.gpus_per_node if asks_for_gpus(job) else 0
    asked: dict[str, str] = {}
    if gpus and have.gpus_per_node:
        part = min(1.0, gpus / have.gpus_per_node) * LEFT_OF_NODE
        if have.cpus:
            # Whole cores, which a kubelet with static CPUs binds.
            asked["cpu"] = str(max(1, math.floor(have.cpus * part)))
        if have.memory_gib:
            asked["memory"] = f"{max(1, math.floor(have.memory_gib * MIB * part))}Mi"
    asked |= {
        name: str(value)
        for name, value in own.resources.items()
        if gpus or name in NATIVE_RESOURCES
    }
    return asked | ({own.gpu_resource: str(gpus)} if gpus else {})


def _gib(value: float) -> str:
    return f"{int(value)}Gi" if value == int(value) else f"{math.ceil(value * MIB)}Mi"


def _env(job: Job, handle: str) -> Iterator[dict[str, Any]]:
    own = {"HOME": TMP_PATH, "USER": TRAINER} | job.env  # the user may have no entry in the image
    if not asks_for_gpus(job):
        own["NVIDIA_VISIBLE_DEVICES"] = NO_GPUS
    own["TORCHX_JOB_ID"] = handle
    for name in sorted(own):
        yield {"name": name, "value": literal(own[name])}
    for name, source in sorted(job.site.secrets.items()):
        if reference := secret_reference(source):
            secret = {"name": reference[0], "key": reference[1]}
            yield {"name": name, "valueFrom": {"secretKeyRef": secret}}


def _toleration(one: Toleration) -> dict[str, Any]:
    words = {"key": one.key, "operator": one.operator, "value": one.value, "effect": one.effect}
    kept: dict[str, Any] = {key: word for key, word in words.items() if word}
    return kept | (
        {"tolerationSeconds": one.tolerationSeconds} if one.tolerationSeconds >= 0 else {}
    )


def _volumes(own: Kubernetes) -> Iterator[dict[str, Any]]:
    shm = {"medium": "Memory", "sizeLimit": _gib(own.shm_gib)}
    yield {"name": "dev-shm", "emptyDir": shm}
    yield {"name": "tmp", "emptyDir": {}}
    for name, volume in own.volumes.items():
        claim = {"claimName": volume.claim_of(name)}
        yield {
            "name": name,
            "persistentVolumeClaim": claim | ({"readOnly": True} if volume.read_only else {}),
        }


def _mounts(own: Kubernetes) -> Iterator[dict[str, Any]]:
    yield {"name": "dev-shm", "mountPath": SHM_PATH}
    yield {"name": "tmp", "mountPath": TMP_PATH}
    for name, volume in own.volumes.items():
        mount = {"name": name, "mountPath": volume.path}
        yield mount | ({"readOnly": True} if volume.read_only else {})


# --- the overlay ----------------------------------------------------------------------------------


def _merged(below: Any, above: Any, key: str = "") -> Any:
    """`above` laid over `below`: tables by key, lists of MERGED_BY by name, all else replaced."""
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        table, laid = cast(dict[str, Any], below), cast(dict[str, Any], above)
        mixed = {
            name: _merged(table[name], laid[name], name) for name in table.keys() & laid.keys()
        }
        return {**table, **laid, **mixed}
    if isinstance(below, list) and isinstance(above, list) and key in MERGED_BY:
        items, mark = [*cast(list[dict[str, Any]], below)], MERGED_BY[key]
        for new in cast(list[dict[str, Any]], above):
            places = [i for i, old in enumerate(items) if old.get(mark) == new.get(mark)]
            if places:
                items[places[0]] = _merged(items[places[0]], new)
            else:
                items.append({**new})
        return items
    return cast(Any, above)


def _conflicts(trainer: Mapping[str, Any], own: Kubernetes, where: str) -> Iterator[Problem]:
    """Variables, mounts and claims that an overlay would take from the trainer."""
    overlay = own.pod
    for volume in overlay.get("volumes", ()):
        if volume["name"] in own.volumes:
            cure = f"use kubernetes.volumes.{volume['name']}, or another name"
            got = f'"{volume["name"]}" is a volume of the profile'
            yield Problem(where, "kubernetes.pod.volumes", got, cure)
    taken = (
        ("env", "name", "is set by the profile or the job already"),
        ("volumeMounts", "mountPath", "is mounted by the profile already"),
    )
    for laid in cast(list[dict[str, list[dict[str, Any]]]], overlay.get("containers", [])):
        for key, mark, got in taken:
            ours = {item[mark] for item in trainer[key]}
            for name in (item.get(mark) for item in laid.get(key, ())):
                if name in ours:
                    what = f"kubernetes.pod.containers.{key}"
                    yield Problem(where, what, f"{name} {got}", "remove it")


def _overlay_faults(spec: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """What a laid-over spec says twice, or names and does not have."""
    what, trainer = "kubernetes.pod", spec["containers"][0]
    for volume in spec["volumes"]:
        if len(volume) != 2:
            sources = ", ".join(sorted(volume.keys() - {"name"})) or "nothing"
            got = f'"{volume["name"]}" would be {sources}'
            yield Problem(where, f"{what}.volumes", got, "give one source, or another name")
    names = {volume["name"] for volume in spec["volumes"]}
    for container in (trainer, *spec.get("initContainers", ())):
        for mount in container.get("volumeMounts", ()):
            if mount.get("name") not in names:
                got = f"{mount.get('mountPath')}: no volume is named {mount.get('name')!r}"
                cure = f"use one of {', '.join(sorted(names))}, or add it to {what}.volumes"
                yield Problem(where, f"{what}.{container['name']}.volumeMounts", got, cure)
