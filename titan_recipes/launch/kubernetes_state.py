"""How a run on Kubernetes stands: its record, the object that is its job, and its pods.

The record on this machine is a mirror of what the pods printed, and is brought up to date first.
The cluster is asked only where the answer matters: not about runs that have ended for good.
"""

from collections.abc import Iterator
from typing import Any

from titan_recipes.config.layout import RunLayout
from titan_recipes.launch.kubernetes_client import EVENT, ApiResource, Object
from titan_recipes.launch.kubernetes_errors import KubernetesError
from titan_recipes.launch.kubernetes_mirror import is_behind, mirror_once
from titan_recipes.launch.kubernetes_pods import (
    Seen,
    conditions_of,
    container_states,
    has_condition,
    look,
    look_beside,
    node_of,
    part,
    phase_of,
    reason_of,
    trainer_state,
)
from titan_recipes.launch.kubernetes_submission import Submitted, submitted
from titan_recipes.launch.record import Attempt, RunRecord, read_record
from titan_recipes.launch.run_state import (
    START_TIMEOUT_SECONDS,
    STOPPING,
    RunState,
    RunStatus,
    age_seconds,
    recorded,
    running,
    unanswered,
)
from titan_recipes.launch.stop import is_persons

WORKLOADS = [
    ApiResource("kueue.x-k8s.io", version, "workloads", "Workload")
    for version in ("v1beta2", "v1beta1")
]
"""Kueue's, as newer and older releases of it have them."""
JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
DONE_CONDITIONS = ("Completed", "Complete")
FAILED_CONDITION, SUSPENDED_CONDITION = "Failed", "Suspended"
VOLCANO_DONE = ("Completed",)
VOLCANO_FAILED = ("Failed", "Aborted", "Terminated")
STARTING = ("ContainerCreating", "PodInitializing")
"""Reasons of a container that waits for nothing in particular."""
OUT_OF_MEMORY = "OOMKilled"


def in_kubernetes(layout: RunLayout, record: RunRecord) -> RunStatus:
    where, ended = submitted(layout), recorded(record)
    if where is None:
        return ended or _not_from_here(layout, record)
    # An object that the record knows nothing of is one that `resume` submitted.
    if ended and record.handle == where.handle:
        return ended
    try:
        seen = look(where)
        mirror_once(layout, where)
    except KubernetesError as error:
        return unanswered(record, str(error))
    record = read_record(layout)
    if (ended := recorded(record)) and record.handle == where.handle:
        return ended
    return _standing(layout, record, where, seen)


def _not_from_here(layout: RunLayout, record: RunRecord) -> RunStatus:
    """Of a run that was submitted by other means into a folder that pods share with us."""
    if record.attempts:
        return running(layout, record)
    if age_seconds(record) < START_TIMEOUT_SECONDS:
        return RunStatus(RunState.PENDING)
    return RunStatus(RunState.FAILED, "lost: it was never submitted")


def _last(record: RunRecord) -> Attempt | None:
    return record.attempts[-1] if record.attempts else None


def _standing(layout: RunLayout, record: RunRecord, where: Submitted, seen: Seen) -> RunStatus:
    live = [pod for pod in seen.pods if phase_of(pod) not in ("Succeeded", "Failed")]
    if seen.is_being_deleted and live:
        return RunStatus(RunState.RUNNING if _has_begun(record) else RunState.PENDING, STOPPING)
    if seen.object is None:
        return _gone(layout, record, where)
    ended, why = _end_of(where.kind, seen.object)
    if ended and is_behind(layout, seen.pods):
        return RunStatus(RunState.RUNNING, "has ended; reading its last words")
    if ended == "done":
        if is_persons(layout):
            return RunStatus(RunState.STOPPED, "asked to stop")
        return RunStatus(RunState.SUCCEEDED)
    if ended == "failed":
        return RunStatus(RunState.FAILED, first_error(record, where, seen, why))
    waits = _waits(where, seen)
    last = _last(record)
    if waits or last is None or record.handle != where.handle:
        again = _before(last, where, seen)
        words = (waits or "starting", f"after: {again}" if again else "")
        return RunStatus(RunState.PENDING, "; ".join(filter(None, words)))
    if last.outcome == "stopped":
        return RunStatus(RunState.PENDING, f"{last.cause}; it starts again by itself")
    return running(layout, record)


def _has_begun(record: RunRecord) -> bool:
    last = _last(record)
    return last is not None and not last.final


def _before(last: Attempt | None, where: Submitted, seen: Seen) -> str:
    """What ended the gang before the one that is waited for, which may not have got to train."""
    if last and last.cause and not last.final:
        return last.cause
    if error := next(_container_errors(seen), ""):
        return error
    status = part(seen.object or {}, "status")
    restarts = status.get("restarts") or status.get("retryCount") or 0  # JobSet's, Volcano's
    return (_warning(where, seen) or f"{restarts} restarts") if restarts else ""


def _gone(layout: RunLayout, record: RunRecord, where: Submitted) -> RunStatus:
    """Of a run whose object is deleted, its pods too."""
    last = _last(record)
    if is_persons(layout):
        if ended := recorded(record):
            return ended
        cause = last.cause if last and last.outcome == "stopped" else "cancelled"
        return RunStatus(RunState.STOPPED, cause if last else "cancelled before it started")
    what = f"{where} was deleted"
    if last and last.outcome == "stopped":
        return RunStatus(RunState.STOPPED, f"{last.cause}; {what}")
    before = f"; before it: {last.cause}" if last and last.cause else ""
    return RunStatus(RunState.FAILED, f"lost: {what}{before}")


# --- the object -----------------------------------------------------------------------------------


def _end_of(kind: str, thing: Object) -> tuple[str, str]:
    """("done", "failed" or "" while it goes on; the controller's words)."""
    if kind == "volcano":
        state = part(thing, "status", "state")
        phase = state.get("phase", "")
        words = state.get("message") or state.get("reason") or phase
        ended = {**dict.fromkeys(VOLCANO_DONE, "done"), **dict.fromkeys(VOLCANO_FAILED, "failed")}
        return ended.get(phase, ""), words
    for name in DONE_CONDITIONS:
        if condition := has_condition(thing, name):
            return "done", condition.get("message", "")
    if condition := has_condition(thing, FAILED_CONDITION):
        return "failed", condition.get("message") or condition.get("reason") or ""
    return "", ""


def _waits(where: Submitted, seen: Seen) -> str:
    """What the gang waits for; "" = all its pods run."""
    assert seen.object is not None
    if has_condition(seen.object, SUSPENDED_CONDITION) or seen.object["spec"].get("suspend"):
        return f"suspended: {_queue_words(where, seen.object) or 'no queue has admitted it yet'}"
    live = [pod for pod in seen.pods if phase_of(pod) not in ("Succeeded", "Failed")]
    waiting = [pod for pod in live if phase_of(pod) == "Pending"]
    if not seen.pods:
        return _warning(where, seen) or _volcano_words(where, seen.object) or "no pods yet"
    if not waiting:
        return "" if live else "its pods have ended; new ones come"
    words = [text for pod in waiting if (text := _pod_waits(pod))]
    few = f"{len(waiting)} of {len(live)} pods wait" if len(live) > 1 else ""
    why = words[0] if words else "its pods start"
    return f"{few}: {why}" if few else why


def _pod_waits(pod: Object) -> str:
    """Why a pod does not run yet, where there is more to say than that it starts."""
    scheduled = conditions_of(pod).get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason', '')}: {scheduled.get('message', '')}".strip(": ")
    for state in container_states(pod).values():
        waiting = part(state, "waiting")
        if (reason := waiting.get("reason", "")) and reason not in STARTING:
            return f"{reason}: {waiting.get('message', '')}".strip(": ")
    return ""


def _queue_words(where: Submitted, thing: Object) -> str:
    """What Kueue says of a job that it has not admitted."""
    uid = thing["metadata"].get("uid", "")
    for workload in look_beside(where, *WORKLOADS, labels=f"{JOB_UID_LABEL}={uid}"):
        reserved = conditions_of(workload).get("QuotaReserved", {})
        if reserved.get("status") == "False":
            return reserved.get("message", "")
    return ""


def _volcano_words(where: Submitted, thing: Object) -> str:
    state = part(thing, "status", "state")
    phase = state.get("phase", "") if where.kind == "volcano" else ""
    words = state.get("message") or state.get("reason") or ""
    return f"{phase}: {words}".strip(": ") if phase else ""


# --- the first error ------------------------------------------------------------------------------


def first_error(record: RunRecord, where: Submitted, seen: Seen, why: str) -> str:
    """Why a run failed: what it said itself, else its container, else the cluster.

    why: the controller's words.
    """
    last = _last(record)
    if last and last.cause and record.handle == where.handle:
        return last.cause
    words = next(_container_errors(seen), "") or _warning(where, seen) or why
    return words or f"{where} failed"


def _container_errors(seen: Seen) -> Iterator[str]:
    """What ended the pods, those that ended first coming first."""
    ended: list[tuple[str, str]] = []
    for pod in seen.pods:
        reason, message = reason_of(pod)
        state = part(trainer_state(pod), "terminated")
        code = state.get("exitCode", 0)
        if reason:  # Evicted, say: its exit code alone would read like another fault
            text = f"{reason}: {message}".strip(": ") + (f" (exit {code})" if code else "")
        elif code:
            text = _terminated(state)
        else:
            continue
        ended.append((state.get("finishedAt") or "", f"pod {node_of(pod)}: {text}"))
    yield from (text for _, text in sorted(ended))


def _terminated(state: dict[str, Any]) -> str:
    """How a container ended: its reason, exit code and last line."""
    code, reason = state.get("exitCode", 0), state.get("reason") or ""
    if reason == OUT_OF_MEMORY:
        return f"{OUT_OF_MEMORY}: it used more memory than its limit (exit {code})"
    lines = [line for line in (state.get("message") or "").splitlines() if line.strip()]
    said = lines[-1].strip() if lines else ""
    named = f"{reason} " if reason not in ("", "Error") else ""
    return f"{said} ({named}exit {code})" if said else f"{named}exit {code}"


def _warning(where: Submitted, seen: Seen) -> str:
    """The newest warning about the submission's objects and pods."""
    events = look_beside(where, EVENT, fields="type=Warning")
    ours = [event for event in events if _is_about(event, where)]
    ours.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return f"{ours[-1].get('reason', '')}: {ours[-1].get('message', '')}" if ours else ""


def _is_about(event: Object, where: Submitted) -> bool:
    """Whether it tells of the submission's object, or of a Job or pod below it."""
    name = str(part(event, "involvedObject").get("name") or "")
    return name == where.name or name.startswith((f"{where.name}-trainer", f"{where.name}-node"))
