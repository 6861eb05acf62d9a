"""What makes pods of the objects on the test API server, and runs them as processes here.

It plays JobSet's, Trainer's and Volcano's controllers, the scheduler and the kubelet as far as a
gang of ours needs them: the real command line and environment of the manifest, SIGTERM and a grace,
a gang that restarts as a whole once the last pod of the old one is gone, exit codes that are not
retried. All pods are on this host, so their DNS names become its loopback address.
"""

import json
import os
import random
import signal
import string
import subprocess
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from manifests import pods as pod_templates

from tests.kubernetes.api_handler import Key, LogFile, Object
from tests.kubernetes.api_server import ApiServer
from titan_recipes.launch.torchrun import descendants

DIGEST = f"sha256:{'d2' * 32}"
"""Under which every image is pulled that is named by a tag."""

NEVER_RETRIED = (2, 3)
JOBS = {"jobsets": "jobset", "trainjobs": "trainjob", "jobs": "volcano"}
INDEX = {
    "jobset": ("batch.kubernetes.io/job-completion-index", "JOB_COMPLETION_INDEX"),
    "trainjob": ("batch.kubernetes.io/job-completion-index", "JOB_COMPLETION_INDEX"),
    "volcano": ("volcano.sh/task-index", "VC_TASK_INDEX"),
}


class PodCluster:
    """Acts on what is created and deleted, from a thread for each gang.

    held: objects made while it is true get no pods yet, as in a queue. more: words that every
    pod's command gets at its end, and variables that it gets.
    """

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self.held = False
        self.more: tuple[str, ...] = ()
        self.env: dict[str, str] = {}
        self.processes: dict[str, subprocess.Popen[str]] = {}  # by the pod's name
        self._gangs: list[threading.Thread] = []
        self._copies: list[threading.Thread] = []
        self._closing = False
        api.on_change.append(self._on_change)

    def stop(self) -> None:
        self._closing = True
        for process in self.processes.values():
            _kill(process)
            process.wait()
        for thread in (*self._gangs, *self._copies):
            thread.join(20)

    def pods(self) -> list[Object]:
        return [
            pod for key, there in self.api.objects.items() if key[1] == "pods"
            for pod in there.values()
        ]  # fmt: skip

    def kill(self, index: int) -> None:
        """As a node that is lost, or the kernel out of memory: no signal that could be caught."""
        (name,) = [pod["metadata"]["name"] for pod in self.pods() if _index(pod) == index]
        _kill(self.processes[name])

    def _on_change(self, kind: str, key: Key, thing: Object) -> None:
        if kind == "ADDED" and key[1] in JOBS:
            gang = threading.Thread(target=self._run, args=(key, thing), daemon=True)
            self._gangs.append(gang)
            gang.start()

    # --- one gang ---------------------------------------------------------------------------------

    def _run(self, key: Key, thing: Object) -> None:
        name, kind = thing["metadata"]["name"], JOBS[key[1]]
        while not self._is_admitted(key, name):
            if self._is_gone(key, name):
                return
            time.sleep(0.02)
        template, nodes = self._template(key, thing, kind)
        while not self._is_gone(key, name):
            gang = [self._start(key, thing, kind, template, index) for index in range(nodes)]
            codes = self._await(key, name, gang)
            if codes is None or self._is_gone(key, name):
                return
            if not any(codes):
                self._end(key, name, kind, done=True)
                return
            if never := [code for code in codes if code in NEVER_RETRIED]:
                self._end(key, name, kind, done=False, why=f"failed with exit code {never[0]}")
                return
            for pod in gang:
                self._forget(key, pod)

    def _is_gone(self, key: Key, name: str) -> bool:
        return self._closing or name not in self.api.objects.get(key, {})

    def _is_admitted(self, key: Key, name: str) -> bool:
        thing = self.api.objects.get(key, {}).get(name, {})
        return not self.held and not thing.get("spec", {}).get("suspend")

    def _template(self, key: Key, thing: Object, kind: str) -> tuple[Object, int]:
        if kind == "trainjob":
            runtimes = self.api.objects[key[0], "trainingruntimes", key[2]]
            thing, nodes = runtimes[thing["spec"]["runtimeRef"]["name"]], thing["spec"]["trainer"]
            return pod_templates(thing)[0], nodes["numNodes"]
        (template,) = pod_templates(thing)
        if kind == "volcano":
            return template, thing["spec"]["tasks"][0]["replicas"]
        return template, thing["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"]

    def _start(self, key: Key, thing: Object, kind: str, template: Object, index: int) -> Object:
        label, variable = INDEX[kind]
        pod = json.loads(json.dumps(template))
        letters = "".join(random.choices(string.ascii_lowercase, k=5))
        name = f"{thing['metadata']['name']}-trainer-0-{index}-{letters}"
        pod["metadata"] |= {"name": name}
        pod["metadata"]["labels"] |= {label: str(index)}
        pods = ("v1", "pods", key[2])
        pod = self.api.make(pods, pod | {"status": {"phase": "Pending"}})
        self.api.logs[pod["metadata"]["uid"]] = LogFile()
        (container,) = pod["spec"]["containers"]
        environment = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        kept = {name: os.environ[name] for name in ("PATH", "TITAN_RECIPES_CACHE", "PYTHONPATH")
                if name in os.environ}  # fmt: skip
        process = subprocess.Popen(
            [
                *(_here(word, thing["metadata"]["name"]) for word in container["command"]),
                *self.more,
            ],
            env=kept | self.env | {"OMP_NUM_THREADS": "1"} | environment | {variable: str(index)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.processes[name] = process
        self._set(pods, pod, "Running", {"running": {"startedAt": _now()}})
        copy = threading.Thread(target=self._copy, args=(pod, process), daemon=True)
        self._copies.append(copy)
        copy.start()
        return pod

    def _copy(self, pod: Object, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        uid = pod["metadata"]["uid"]
        with process.stdout as printed:
            for line in printed:
                self.api.print_line(uid, line.rstrip("\n"))
        self.api.close_log(uid)

    def _await(self, key: Key, name: str, gang: list[Object]) -> list[int] | None:
        """The exit codes of a gang; None where it was deleted. One that fails ends the others."""
        pods, ended, told = ("v1", "pods", key[2]), dict[str, int](), dict[str, float]()
        while len(ended) < len(gang):
            for pod in gang:
                pod_name = pod["metadata"]["name"]
                process = self.processes[pod_name]
                now = self.api.objects[pods].get(pod_name, pod)
                grace = now["metadata"].get("deletionGracePeriodSeconds")
                if grace is None and (self._is_gone(key, name) or any(ended.values())):
                    grace = now["spec"]["terminationGracePeriodSeconds"]
                    now["metadata"]["deletionTimestamp"] = _now()
                if grace is not None:
                    if pod_name not in told:
                        _signal(process, signal.SIGTERM)
                    deadline = told.get(pod_name, time.monotonic() + grace)
                    told[pod_name] = min(deadline, time.monotonic() + grace)
                if time.monotonic() > told.get(pod_name, float("inf")):
                    _kill(process)
                code = process.poll()
                if code is not None and pod_name not in ended:
                    ended[pod_name] = code if code >= 0 else 128 - code
                    self._await_log(pod)
                    self._set_ended(pods, now, ended[pod_name])
            time.sleep(0.02)
        if self._is_gone(key, name):
            for pod in gang:
                self._forget(key, pod)
            return None
        return [ended[pod["metadata"]["name"]] for pod in gang]

    def _await_log(self, pod: Object) -> None:
        with self.api.changed:
            log = self.api.logs[pod["metadata"]["uid"]]
            while log.is_open and not self._closing:
                self.api.changed.wait(0.1)

    def _set_ended(self, pods: Key, pod: Object, code: int) -> None:
        lines = [text for _, text in self.api.logs[pod["metadata"]["uid"]].lines[-80:]]
        reason = "Error" if code else "Completed"
        ended = {"exitCode": code, "reason": reason, "finishedAt": _now()}
        ended |= {"message": "\n".join(lines)[-2048:]} if code else {}
        self._set(pods, pod, "Failed" if code else "Succeeded", {"terminated": ended})

    def _set(self, pods: Key, pod: Object, phase: str, state: Object) -> None:
        name = pod["spec"]["containers"][0]["name"]
        image = pod["spec"]["containers"][0]["image"]
        pulled = image if "@" in image else f"{image.rpartition(':')[0]}@{DIGEST}"
        status = {"name": name, "state": state, "image": image, "imageID": pulled}
        statuses = [status | {"ready": False, "restartCount": 0}]
        self.api.put(pods, pod | {"status": {"phase": phase, "containerStatuses": statuses}})

    def _forget(self, key: Key, pod: Object) -> None:
        self.api.remove(("v1", "pods", key[2]), pod["metadata"]["name"])

    def _end(self, key: Key, name: str, kind: str, *, done: bool, why: str = "") -> None:
        thing = self.api.objects[key][name]
        if kind == "volcano":
            status: Any = {"state": {"phase": "Completed" if done else "Aborted", "reason": why}}
        else:
            word = {"jobset": "Completed", "trainjob": "Complete"}[kind] if done else "Failed"
            status = {"conditions": [{"type": word, "status": "True", "message": why}]}
        self.api.put(key, thing | {"status": status})


def _index(pod: Object) -> int:
    labels = pod["metadata"]["labels"]
    return int(next(labels[label] for label, _ in INDEX.values() if label in labels))


def _here(word: str, name: str) -> str:
    """A word of the command as the container gets it, names of pods led to this host."""
    word = word.replace("$$", "$")
    return "127.0.0.1" if word.endswith(f".{name}") else word


def _kill(process: subprocess.Popen[str]) -> None:
    """What the end of a container does to all of its processes."""
    if process.poll() is None:
        for pid in (*descendants(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    if process.poll() is None:
        os.kill(process.pid, number)


def _now() -> str:
    return datetime.now(UTC).strftime("%FT%TZ")
