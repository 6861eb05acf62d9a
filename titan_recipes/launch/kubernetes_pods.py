"""What a cluster says of a submission and its pods.

It is asked for every few seconds at most, however often somebody wants to know. Objects are plain
data: what is not there yet, or is somebody else's way to write it, is met with `.get`.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from titan_recipes.launch.image import pulled_image
from titan_recipes.launch.kubernetes_client import POD, Object, connect
from titan_recipes.launch.kubernetes_errors import UNREACHED, KubernetesError, NotInstalled
from titan_recipes.launch.kubernetes_submission import Submitted
from titan_recipes.render import RESOURCES
from titan_recipes.render.kubernetes import GANGS, SUBMISSION_LABEL, ApiResource

ASK_SECONDS = 2.0
"""How old an answer may be: who follows a run looks much oftener than an API server likes."""
ASK_AGAIN_SECONDS = 10.0
"""... and one that did not come."""
PODS_A_SECOND = 50
"""... and of a large gang, whose pods are much to send."""
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
INDEX_LABELS = {
    "jobset": COMPLETION_INDEX,
    "trainjob": COMPLETION_INDEX,
    "volcano": "volcano.sh/task-index",
}
"""Kind -> the label of a pod that holds its place in the gang."""
CONTAINERS = {gang.container for gang in GANGS.values()}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the cluster says of a submission."""

    object: Object | None
    """None = it is gone."""
    pods: tuple[Object, ...]
    """Oldest first."""

    @property
    def is_being_deleted(self) -> bool:
        return self.object is None or "deletionTimestamp" in self.object["metadata"]


# (until when the answer counts, the answer)
_asked: dict[Submitted, tuple[float, Seen | KubernetesError]] = {}
_unreached: dict[str, tuple[float, KubernetesError]] = {}  # by context
_beside: dict[tuple[Submitted, tuple[ApiResource, ...], str, str], tuple[float, list[Object]]] = {}


def look(where: Submitted) -> Seen:
    """A submission as the cluster has it, at most ASK_SECONDS ago.

    Raises KubernetesError where the cluster can't be asked; for a while at once, as each of a
    list of runs would wait for the same server.
    """
    out_until, why = _unreached.get(where.context, (0.0, None))
    if why is not None and time.monotonic() < out_until:
        raise why
    until, answer = _asked.get(where, (0.0, None))
    if answer is None or time.monotonic() > until:
        fresh_seconds = ASK_SECONDS
        try:
            answer = _look(where)
            fresh_seconds = max(fresh_seconds, len(answer.pods) / PODS_A_SECOND)
        except KubernetesError as error:
            answer, fresh_seconds = error, ASK_AGAIN_SECONDS
            if error.status == UNREACHED:
                _unreached[where.context] = (time.monotonic() + fresh_seconds, error)
        _asked[where] = (time.monotonic() + fresh_seconds, answer)
    if isinstance(answer, KubernetesError):
        raise answer
    return answer


def look_beside(
    where: Submitted, *versions: ApiResource, labels: str = "", fields: str = ""
) -> list[Object]:
    """Other objects of a submission's namespace, as they were at most ASK_SECONDS ago.

    versions: of their kind, the first that the cluster has is asked for. [] where they are not for
    us to see, or the cluster has no such kind.
    """
    key = (where, versions, labels, fields)
    until, found = _beside.get(key, (0.0, list[Object]()))
    if time.monotonic() > until:
        found = []
        with suppress(KubernetesError):
            api = connect(where.context)
            for version in versions:
                with suppress(NotInstalled):
                    found, _ = api.find(version, where.namespace, labels=labels, fields=fields)
                    break
        _beside[key] = (time.monotonic() + ASK_SECONDS, found)
    return found


def forget_answers() -> None:
    """Ask anew at the next look."""
    _asked.clear()
    _unreached.clear()
    _beside.clear()


def _look(where: Submitted) -> Seen:
    there = connect(where.context).get(RESOURCES[where.kind], where.namespace, where.name)
    if there and where.uid and there["metadata"].get("uid") != where.uid:
        there = None  # somebody else's, of the same name
    pods, _ = find_pods(where)
    return Seen(there, tuple(pods))


def find_pods(where: Submitted, node: int | None = None) -> tuple[list[Object], str]:
    """(a submission's pods, oldest first; the version to watch them from).

    node: only those of this place in the gang. Raises KubernetesError.
    """
    api = connect(where.context)
    pods, version = api.find(POD, where.namespace, labels=selector(where, node))
    return sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or ""), version


def selector(where: Submitted, node: int | None = None) -> str:
    """Of a submission's pods, or of those of one node."""
    of_node = "" if node is None else f",{INDEX_LABELS[where.kind]}={node}"
    return f"{SUBMISSION_LABEL}={where.name}{of_node}"


# --- one pod --------------------------------------------------------------------------------------


def pod_name(pod: Object) -> str:
    return pod["metadata"]["name"]


def node_of(pod: Object) -> int:
    """A pod's place in the gang; -1 = it has none."""
    labels = cast(Mapping[str, str], pod["metadata"].get("labels") or {})
    found = [labels[label] for label in INDEX_LABELS.values() if label in labels]
    return int(found[0]) if found and found[0].isdecimal() else -1


def container_of(pod: Object) -> str:
    """Name of the trainer's container; a webhook of the cluster may have put others before it."""
    return _container(pod)["name"]


def _container(pod: Object) -> Object:
    containers = cast(list[Object], pod["spec"]["containers"])
    ours = [one for one in containers if one["name"] in CONTAINERS]
    return ours[0] if ours else containers[0]


def phase_of(pod: Object) -> str:
    """Pending, Running, Succeeded, Failed or Unknown."""
    return _status(pod).get("phase") or "Pending"


def reason_of(pod: Object) -> tuple[str, str]:
    """(reason, message) of the pod itself, such as Evicted."""
    status = _status(pod)
    return status.get("reason") or "", status.get("message") or ""


def conditions_of(thing: Object) -> dict[str, dict[str, str]]:
    """The conditions of any object, by their type."""
    found = cast(list[dict[str, str]], _status(thing).get("conditions") or [])
    return {condition.get("type", ""): condition for condition in found}


def has_condition(thing: Object, kind: str) -> dict[str, str] | None:
    """A condition that is true."""
    condition = conditions_of(thing).get(kind)
    return condition if condition and condition.get("status") == "True" else None


def container_states(pod: Object) -> dict[str, dict[str, dict[str, Any]]]:
    """Container, those that run first too -> `waiting`, `running` or `terminated`, and more."""
    found = list[dict[str, Any]]()
    for key in ("initContainerStatuses", "containerStatuses"):
        found += cast(list[dict[str, Any]], _status(pod).get(key) or [])
    return {one["name"]: one.get("state") or {} for one in found}


def image_of(pod: Object) -> str:
    """The trainer's image with the digest that it was pulled under; "" = the node does not say."""
    container = _container(pod)
    image = str(container["image"])
    if "@" in image:
        return image
    statuses = cast(list[dict[str, str]], _status(pod).get("containerStatuses") or [])
    pulled = next((s.get("imageID", "") for s in statuses if s["name"] == container["name"]), "")
    return pulled_image(image, pulled)


def trainer_state(pod: Object) -> dict[str, dict[str, Any]]:
    """`waiting`, `running` or `terminated` of the trainer's container, and more."""
    return container_states(pod).get(container_of(pod), {})


def has_started(pod: Object) -> bool:
    """Whether it has a log."""
    return bool({"running", "terminated"} & trainer_state(pod).keys())


def has_ended(pod: Object) -> bool:
    """Whether its log grows no more."""
    return "terminated" in trainer_state(pod) or phase_of(pod) in ("Succeeded", "Failed")


def part(thing: Object, *keys: str) -> dict[str, Any]:
    """A table in an object; {} where there is none."""
    for key in keys:
        thing = thing.get(key) or {}
    return thing


def _status(thing: Object) -> dict[str, Any]:
    return part(thing, "status")
