"""Stopping, killing and starting again what Kubernetes runs.

Stopping is deleting the object: its pods get SIGTERM and the time to save. What they still say is
read meanwhile, as it is gone with them.
"""

import time
from collections.abc import Callable

from titan_recipes.config.job import Job, read_job
from titan_recipes.config.kubernetes import Kubernetes
from titan_recipes.errors import LaunchError
from titan_recipes.launch.image import by_digest
from titan_recipes.launch.kubernetes_client import POD, connect
from titan_recipes.launch.kubernetes_mirror import mirrored
from titan_recipes.launch.kubernetes_pods import find_pods, forget_answers, pod_name
from titan_recipes.launch.kubernetes_submission import (
    Submitted,
    is_mirror,
    pods_image,
    submit,
    submitted,
    unknown_submission,
    withdraw,
)
from titan_recipes.launch.run_end import closed
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.stop import CANCEL_WORD, KILL_WORD, KILLED
from titan_recipes.render import RESOURCES, PodSubmission, object_name
from titan_recipes.render.kubernetes import SUBMISSION_LABEL
from titan_recipes.render.pod import grace_seconds

POLL_SECONDS = 0.5
ANSWER_SECONDS = 30.0
"""Beyond the pods' own grace, for the cluster to tell and remove them."""
KILL_GRACE_SECONDS = 1
"""Of a pod that is killed: with 0 it would be forgotten before its processes are dead."""
UNHEARD = "asked to stop, and ended before it had saved"


def cancel_pods(run: Run, waiting: Callable[[float], None]) -> Run:
    """Have the pods save and go, and wait until they are gone; the run as it ended.

    Raises LaunchError where they don't go in time.
    """
    where = _where(run)
    with mirrored(run.layout) as drain:
        cancel_object(run)
        kill = f"titan-recipes cancel {run.word} --now"
        _await_gone(run, lambda: _pods(where), kill, waiting)
        drain()
    return _ended(run, where, UNHEARD)


def _pods(where: Submitted) -> list[str]:
    """The names of a submission's pods."""
    return [*map(pod_name, find_pods(where)[0])]


def _await_gone(
    run: Run,
    left: Callable[[], list[str]],
    kill: str,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Wait until nothing is left of a deleted submission.

    left: names what is there still; kill: what to type where it stays, which is a LaunchError.
    """
    job = run.job()
    grace = grace_seconds(job) if job else 0
    began = time.monotonic()
    while names := left():
        waited = time.monotonic() - began
        if waited > grace + ANSWER_SECONDS:
            why = f"not gone after {waited:.0f} s: {', '.join(names[:3])}; kill it: {kill}"
            raise LaunchError(f"{run.name}: {why}")
        waiting(waited)
        time.sleep(POLL_SECONDS)


def cancel_object(run: Run) -> None:
    """Have the pods save and go, without waiting for it. Raises KubernetesError."""
    _withdraw(run, CANCEL_WORD)


def _withdraw(run: Run, word: str) -> None:
    """Delete the run's object; word: what is remembered of why."""
    run.layout.stop.write_text(word, encoding="utf-8")  # before its pods go, if they can see it
    try:
        withdraw(_where(run))
    except LaunchError:
        run.layout.stop.unlink(missing_ok=True)
        raise
    forget_answers()


def kill_pods(run: Run) -> Run:
    """End the pods at once; the run as it ended."""
    where = _where(run)
    with mirrored(run.layout) as drain:
        _withdraw(run, KILL_WORD)
        api = connect(where.context)
        deadline = time.monotonic() + ANSWER_SECONDS
        while pods := find_pods(where)[0]:
            # On a node that is lost nobody is left to say that they are dead.
            is_late = time.monotonic() > deadline
            for pod in pods:
                api.delete(
                    POD,
                    where.namespace,
                    pod_name(pod),
                    grace_seconds=0 if is_late else KILL_GRACE_SECONDS,
                )
            if is_late and time.monotonic() > deadline + ANSWER_SECONDS:
                see = f"kubectl -n {where.namespace} get pod {pod_name(pods[0])}"
                raise LaunchError(f"{run.name}: its pods do not go; see: {see}")
            time.sleep(POLL_SECONDS)
        drain()
    return _ended(run, where, KILLED)


def start_pods(run: Run, log_offset: int) -> None:
    """Submit the run once more: another object, the same directory in the pods' volume.

    What a killed `resume` left there under that name is deleted first, its pods told to save: two
    gangs would write into one directory.
    """
    where, job = _where(run), read_job(run.layout.job)
    number = where.number + 1
    submission = PodSubmission(
        object_name=object_name(run.name, number),
        run_name=run.name,
        run_dir=where.run_dir,
        image=_image(run, job),
        resumed=True,
    )
    if unknown := unknown_submission(job, submission, number):
        withdraw(unknown)
        chosen = f"-l {SUBMISSION_LABEL}={unknown.name}"

        def left() -> list[str]:
            is_there = unknown_submission(job, submission, number)  # a finalizer may hold it
            return [*_pods(unknown), *([str(unknown)] if is_there else [])]

        _await_gone(run, left, f"kubectl -n {unknown.namespace} delete pods --now {chosen}")
    submit(run.layout, job, submission, number)
    forget_answers()


def _image(run: Run, job: Job) -> str:
    """The image of a run's next pods: the digest that the last ones ran, unless another is named.

    Tags move: a run goes on with the code that it began with.
    """
    named, ran = pods_image(job), run.record.image
    return by_digest(ran) if ran.startswith(f"{named}@") else named


def _where(run: Run) -> Submitted:
    where = submitted(run.layout)
    if where is None:
        job, got = run.job(), "was not submitted from here, or never was"
        resource = RESOURCES[job.site.kubernetes.kind if job else Kubernetes().kind]
        see = f"kubectl get {resource.plural}.{resource.group} --all-namespaces"
        raise LaunchError(f"{run.name}: {got}; see: {see}")
    return where


def _ended(run: Run, where: Submitted, cause: str) -> Run:
    """The run, its record closed where its pods had not closed it."""
    forget_answers()
    run = open_run(run.layout.root)
    last = run.record.attempts[-1] if run.record.attempts else None
    if not is_mirror(run.layout) or last is None or run.record.handle != where.handle:
        return run
    return closed(run, last.cause if last.outcome == "stopped" else cause)
