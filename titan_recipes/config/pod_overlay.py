"""kubernetes.pod: what a profile may lay over the pods' spec, and what it may not.

Refused is what has a key of its own, and what would break something that is promised: that a run
stops with a checkpoint, that its pods meet, that none of them can do more than it needs. The rest
is Kubernetes' to judge.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from titan_recipes.config.kubernetes_names import label_fault
from titan_recipes.config.load import did_you_mean, show
from titan_recipes.errors import Problem

TRAINER = "trainer"
"""The trainer's container, by this name in an overlay whatever the kind of job calls it."""

OWN_KEY = {
    "affinity": "affinity",
    "imagePullSecrets": "image_pull_secrets",
    "nodeSelector": "node_selector",
    "priorityClassName": "priority_class",
    "serviceAccountName": "service_account",
    "tolerations": "tolerations",
}
"""Keys of a pod -> the profile's own."""
PROMISED = {
    "restartPolicy": "restarts are the job's, which knows what a retry can mend",
    "terminationGracePeriodSeconds": "it follows from fault_tolerance.grace_seconds",
    "securityContext": "see run_as_user, run_as_root and fs_group",
    "automountServiceAccountToken": "a trainer needs no access to the API",
    "enableServiceLinks": "they would fill the environment",
    "hostPID": "pods keep to themselves",
    "hostIPC": "pods keep to themselves",
    "shareProcessNamespace": "the trainer has to be the process that is told to stop",
    "hostname": "pods meet by the names that their job gives them",
    "subdomain": "pods meet by the names that their job gives them",
    "setHostnameAsFQDN": "pods meet by the names that their job gives them",
    "nodeName": "the scheduler places pods; see node_selector",
    "serviceAccount": "see service_account",
    "ephemeralContainers": "they belong to pods that run",
}
"""Keys of a pod that stay as they are -> why."""
FREE = (
    "activeDeadlineSeconds", "dnsConfig", "dnsPolicy", "hostAliases", "hostNetwork", "hostUsers",
    "initContainers", "containers", "os", "overhead", "preemptionPolicy", "priority",
    "readinessGates", "resourceClaims", "resources", "runtimeClassName", "schedulerName",
    "schedulingGates", "topologySpreadConstraints", "volumes",
)  # fmt: skip
"""A pod's other keys."""
TRAINER_PROMISED = {
    "name": "",
    "image": "see [container] image",
    "imagePullPolicy": "see image_pull_policy",
    "command": "stopping and the rendezvous rest on it",
    "args": "stopping and the rendezvous rest on it",
    "resources": "see resources and [hardware]",
    "securityContext": "see run_as_root and read_only_root",
    "lifecycle": "a hook would use up the time to save in",
    "restartPolicy": "restarts are the job's, which knows what a retry can mend",
    "terminationMessagePolicy": "`status` reads the first error there",
}
TRAINER_FREE = (
    "env", "envFrom", "livenessProbe", "ports", "readinessProbe", "resizePolicy", "startupProbe",
    "stdin", "stdinOnce", "terminationMessagePath", "tty", "volumeDevices", "volumeMounts",
    "workingDir",
)  # fmt: skip
PRIVILEGES = {
    "privileged": False,
    "allowPrivilegeEscalation": False,
    "procMount": "Default",
    "runAsNonRoot": True,
}
"""Keys of a security context -> the only value that they may have."""


def overlay_problems(
    overlay: Mapping[str, Any], where: str, what: str, kind: str
) -> Iterator[Problem]:
    """What of the overlay is not for a profile to say."""
    for key, value in overlay.items():
        if key in OWN_KEY:
            cure = f"use kubernetes.{OWN_KEY[key]}"
            yield Problem(where, f"{what}.{key}", "has a key of its own", cure)
        elif key in PROMISED:
            yield Problem(where, f"{what}.{key}", "can't be set", PROMISED[key])
        elif key == "schedulerName" and kind == "volcano":
            got = 'can\'t be set with kind = "volcano"'
            yield Problem(where, f"{what}.{key}", got, "remove it: its scheduler starts gangs")
        elif key not in FREE:
            known = (*FREE, *OWN_KEY, *PROMISED)
            cure = did_you_mean(key, known) or "see the API reference of Pod"
            yield Problem(where, f"{what}.{key}", "not a key of a pod's spec", cure)
        elif key in ("containers", "initContainers", "volumes"):
            yield from _named_problems(value, where, f"{what}.{key}", key)
    yield from value_problems(dict(overlay), where, what)


def _named_problems(value: Any, where: str, what: str, key: str) -> Iterator[Problem]:
    if problem := _no_tables(value, where, what):
        yield problem
        return
    for index, table in enumerate(cast(list[dict[str, Any]], value)):
        place = f"{what}.{index}"
        name = table.get("name")
        for lists in ("env", "volumeMounts"):
            if lists in table and (problem := _no_tables(table[lists], where, f"{place}.{lists}")):
                yield problem
        if not isinstance(name, str) or label_fault(name):
            got = f"got {show(name)}" if "name" in table else "has no name"
            yield Problem(where, f"{place}.name", got, label_fault("") + ", as Kubernetes does")
        elif key == "containers" and name != TRAINER:
            cure = (
                f"write it under {what.replace('containers', 'initContainers')} with "
                'restartPolicy = "Always"'
            )
            got = f'"{name}" would keep the pod from ending when the trainer has'
            yield Problem(where, f"{place}.name", got, cure)
        elif key == "containers":
            yield from _trainer_problems(table, where, place)
        elif key == "initContainers":
            yield from _privilege_problems(table, where, place)
            if name == TRAINER:
                got = "is the name of the trainer's own container"
                yield Problem(where, f"{place}.name", got, "choose another name")


def _no_tables(value: Any, where: str, what: str) -> Problem | None:
    """What is wrong where a list of tables, such as an overlay is merged by, is something else."""
    items = cast(list[Any], value) if isinstance(value, list) else [None]
    if all(isinstance(item, dict) for item in items):
        return None
    return Problem(where, what, f"got {show(value)}", f"must be tables: [[{what}]]")


def _trainer_problems(table: Mapping[str, Any], where: str, what: str) -> Iterator[Problem]:
    for key in table:
        if TRAINER_PROMISED.get(key):
            yield Problem(where, f"{what}.{key}", "can't be set", TRAINER_PROMISED[key])
        elif key not in TRAINER_FREE and key != "name":
            cure = did_you_mean(key, (*TRAINER_FREE, *TRAINER_PROMISED))
            cure = cure or "see the API reference of Container"
            yield Problem(where, f"{what}.{key}", "not a key of a container", cure)


def _privilege_problems(table: Mapping[str, Any], where: str, what: str) -> Iterator[Problem]:
    """Of a container beside the trainer, which gets the trainer's security context else."""
    given: Any = table.get("securityContext", {})
    context = cast(dict[str, Any], given) if isinstance(given, dict) else {}
    place = f"{what}.securityContext"
    if not isinstance(given, dict):
        yield Problem(where, place, f"got {show(given)}", "must be a table")
    for key, usual in PRIVILEGES.items():
        if context.get(key, usual) != usual:
            yield Problem(where, f"{place}.{key}", f"got {show(context[key])}", "remove it")
    if context.get("runAsUser") == 0:
        yield Problem(where, f"{place}.runAsUser", "got 0", "remove it")
    for key in ("capabilities", "seccompProfile"):
        if key in context:
            yield Problem(where, f"{place}.{key}", "can't be set", "all capabilities are dropped")


def value_problems(value: Any, where: str, what: str) -> Iterator[Problem]:
    """What no YAML could hold, or would hold as something else."""
    if isinstance(value, float):
        got = f"got {value!r}: the API has no such numbers"
        yield Problem(where, what, got, f'write it as text: "{value!r}"')
    elif isinstance(value, str) and "\0" in value:
        yield Problem(where, what, f"got {show(value)}", "must be text without NUL")
    elif isinstance(value, dict):
        for key, below in cast(dict[str, Any], value).items():
            yield from value_problems(below, where, f"{what}.{key}")
    elif isinstance(value, list):
        for index, below in enumerate(cast(list[Any], value)):
            yield from value_problems(below, where, f"{what}.{index}")
