"""Keeping the run directory on this machine up to date while pods write another one.

`mirror_once` reads what the logs hold now, for who only looks. `mirrored` follows them from a
thread while a command runs: a pod that is restarted or cancelled goes soon after its last word.
Of several shells on one run, one reads, and the others see the files it writes.
"""

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import LaunchError
from titan_recipes.launch.kubernetes_client import POD, Api, Object, Stream, connect
from titan_recipes.launch.kubernetes_errors import (
    EXPIRED,
    FORBIDDEN,
    UNAUTHORIZED,
    KubernetesError,
)
from titan_recipes.launch.kubernetes_log import NodeMirror, Reading, ended_pods
from titan_recipes.launch.kubernetes_pods import (
    ASK_SECONDS,
    container_of,
    find_pods,
    has_ended,
    has_started,
    image_of,
    node_of,
    pod_name,
    selector,
)
from titan_recipes.launch.kubernetes_submission import Submitted, is_mirror, submitted

WATCH_SECONDS = 10
"""How long a watch for pods goes on before the pods are listed again."""
AGAIN_SECONDS = 1.0
"""Between two tries at what failed, or is somebody else's."""
LOGIN_SECONDS = 10.0
"""... and between two logins, for which a kubeconfig may run a program."""
MOST_FAILURES = 3
"""Of reading the log of a pod that has ended, after which it is given up."""
SETTLE_SECONDS = 0.2
"""From the end of a log to the status that says that its pod has ended."""
JOIN_SECONDS = 5.0


_mirrored: dict[tuple[RunLayout, int], float] = {}  # when that last was done


def mirror_once(layout: RunLayout, where: Submitted, node: int = 0) -> None:
    """Write down what a node's pods have printed so far, unless somebody else does, or just did.

    What can't be read now is left for the next time. Raises KubernetesError.
    """
    if not is_mirror(layout) or time.monotonic() < _mirrored.get((layout, node), 0.0) + ASK_SECONDS:
        return
    with _alone(layout, node) as is_ours:
        if not is_ours:
            return
        # Listed under the lock: a pod that is read already must not be taken for gone.
        pods, _ = find_pods(where, node)
        mirror, api = NodeMirror(layout, node), connect(where.context)
        for pod in _unread(mirror, pods, where):
            try:
                _read_now(mirror, api, where, pod)
            except LaunchError as error:
                _warn(error)
    _mirrored[layout, node] = time.monotonic()


def is_behind(layout: RunLayout, pods: Sequence[Object]) -> bool:
    """Whether node 0 has said more than is written down here, and it is going to be."""
    if not is_mirror(layout) or not os.access(layout.root, os.W_OK):
        return False
    ended = ended_pods(layout)
    return any(_uid(pod) not in ended for pod in pods if node_of(pod) == 0 and has_started(pod))


@contextmanager
def mirrored(layout: RunLayout, node: int = 0) -> Generator[Callable[[], None]]:
    """While inside, what a node's pods print is written down as they print it.

    What it gives waits for the last words of pods that are gone.
    """
    if not is_mirror(layout):
        yield lambda: None
        return
    follower = _Follower(layout, node)
    follower.start()
    try:
        yield follower.drain
    finally:
        follower.stop()


@contextmanager
def node_mirrored(
    layout: RunLayout, job: Job | None, *, rank: int | None, node: int | None, follow: bool
) -> Generator[None]:
    """Have the log of a rank, a node or, with neither, node 0 here before somebody shows it.

    follow: also what it prints while inside. Where the cluster can't be asked, a line says so.
    """
    where = submitted(layout)
    if where is None or not is_mirror(layout):
        yield
        return
    if rank is not None:
        node = rank // job.plan.gpus_per_node if job else 0
    try:
        mirror_once(layout, where, node or 0)
    except KubernetesError as error:
        print(f"warning: as last seen: {error}", file=sys.stderr)
    if rank is not None and layout.node_log(node or 0).exists():
        layout.rank_log(rank).touch()  # also of a rank that says nothing
    if not follow:
        yield
        return
    with mirrored(layout, node or 0):
        yield


class _Follower(threading.Thread):
    """Reads the logs of one node's pods, one pod after the other, until it is stopped."""

    def __init__(self, layout: RunLayout, node: int) -> None:
        super().__init__(name=f"mirror of {layout.root.name}", daemon=True)
        self._layout, self._node = layout, node
        self._stop_event = threading.Event()
        self._stream: Stream | None = None
        self._is_reading = False

    def stop(self) -> None:
        """End it; what it has not read, the next one reads."""
        self._stop_event.set()
        if stream := self._stream:
            stream.close()
        self.join(JOIN_SECONDS)

    def drain(self) -> None:
        """Wait until the log it reads, if any, is at its end."""
        deadline = time.monotonic() + JOIN_SECONDS
        while self._is_reading and time.monotonic() < deadline:
            time.sleep(SETTLE_SECONDS)

    def run(self) -> None:
        while not self._stop_event.is_set() and is_mirror(self._layout):
            with _alone(self._layout, self._node) as is_ours:
                if is_ours:
                    self._follow(NodeMirror(self._layout, self._node))
            self._stop_event.wait(AGAIN_SECONDS)

    def _follow(self, mirror: NodeMirror) -> None:
        while not self._stop_event.is_set():
            where = submitted(self._layout)
            if where is None or not is_mirror(self._layout):
                return
            try:
                self._follow_pods(mirror, where)
            except LaunchError as error:  # `run_status` asks too, and says so
                _warn(error)
                is_unknown = getattr(error, "status", 0) == UNAUTHORIZED
                self._stop_event.wait(LOGIN_SECONDS if is_unknown else AGAIN_SECONDS)

    def _follow_pods(self, mirror: NodeMirror, where: Submitted) -> None:
        """Read the pods that there are to their ends, or wait until something changes."""
        api = connect(where.context)
        pods, version = find_pods(where, self._node)
        unread = _unread(mirror, pods, where)
        for pod in unread:
            if not has_ended(pod):
                self._follow_log(mirror, api, where, pod)
                self._stop_event.wait(SETTLE_SECONDS)
            else:
                _read_now(mirror, api, where, pod)
        if not unread:
            self._await_change(api, where, version)

    def _follow_log(self, mirror: NodeMirror, api: Api, where: Submitted, pod: Object) -> None:
        """Write down what a pod prints until its log ends or the connection breaks off.

        Whether the log is at its end is seen from the pod, as connections have time limits.
        """
        position = mirror.position(_uid(pod))
        reading = Reading(position)
        since, container = position.moment, container_of(pod)
        self._is_reading = True
        try:
            self._stream = api.log(
                where.namespace, pod_name(pod), container, since=since, follow=True
            )
            for lines in self._stream.lines():
                mirror.add([*reading.fresh(lines)], where)
                mirror.see_image(image_of(pod))
                if self._stop_event.is_set():
                    return
        finally:
            self._stream, self._is_reading = None, False

    def _await_change(self, api: Api, where: Submitted, version: str) -> None:
        """Return when a pod of the run comes, changes or goes, or after some seconds."""
        try:
            self._stream = api.watch(
                POD,
                where.namespace,
                labels=selector(where, self._node),
                version=version,
                seconds=WATCH_SECONDS,
            )
            for lines in self._stream.lines():
                if self._stop_event.is_set() or any(map(self._is_change, lines)):
                    return
        except KubernetesError as error:
            if error.status != EXPIRED:
                raise
        finally:
            if self._stream is not None:
                self._stream.close()
            self._stream = None

    def _is_change(self, line: str) -> bool:
        """Whether a watch tells of a pod, or of an error: 410 asks for a new list."""
        try:
            event = json.loads(line)
        except ValueError:
            return True
        return event.get("type") != "BOOKMARK"


def _unread(mirror: NodeMirror, pods: Sequence[Object], where: Submitted) -> list[Object]:
    """The node's pods that have a log, oldest first, those read to their end left out."""
    mirror.end_all_but({_uid(pod) for pod in pods}, where)
    return [
        pod
        for pod in pods
        if node_of(pod) == mirror.node and has_started(pod) and not mirror.position(_uid(pod)).ended
    ]


def _read_now(mirror: NodeMirror, api: Api, where: Submitted, pod: Object) -> None:
    """Write down what a pod has printed so far. Raises KubernetesError where it can't be read."""
    uid = _uid(pod)
    position = mirror.position(uid)
    reading = Reading(position)
    mirror.add([], where)
    mirror.see_image(image_of(pod))
    try:
        stream = api.log(where.namespace, pod_name(pod), container_of(pod), since=position.moment)
        for lines in stream.lines():
            mirror.add([*reading.fresh(lines)], where)
        if reading.strange:
            raise KubernetesError(f"can't read the log of pod {pod_name(pod)}: {reading.strange}")
    except KubernetesError:  # a pod that is gone is not in the next list
        if not has_ended(pod) or mirror.fail(uid) < MOST_FAILURES:
            raise
        mirror.end(uid, where)
        return
    if has_ended(pod):
        mirror.end(uid, where)


_warned: set[str] = set()


def _warn(error: LaunchError) -> None:
    """Say once what no waiting mends; what the cluster refuses for a moment is tried again."""
    if getattr(error, "status", 0) in (UNAUTHORIZED, FORBIDDEN) and str(error) not in _warned:
        _warned.add(str(error))
        print(f"warning: {error}", file=sys.stderr)


def _uid(pod: Object) -> str:
    return pod["metadata"]["uid"]


@contextmanager
def _alone(layout: RunLayout, node: int) -> Generator[bool]:
    """Whether this is the one that writes the mirror; not on a directory that isn't ours."""
    try:
        layout.mirror.mkdir(exist_ok=True)
        file = os.open(layout.mirror / f"node-{node}.lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except BlockingIOError:
            is_ours = False
        except OSError:  # a file system without locks
            is_ours = True
        yield is_ours
    finally:
        os.close(file)
