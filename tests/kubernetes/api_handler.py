"""The HTTP half of the test API server: paths, verbs, streams, and failing on request."""

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from manifests import schema_faults

Object = dict[str, Any]
Key = tuple[str, str, str]  # (group/version or version, plural, namespace)
TOKEN = "token-of-the-tests"
KINDS = {
    ("v1", "pods"): "Pod",
    ("v1", "events"): "Event",
    ("v1", "persistentvolumeclaims"): "PersistentVolumeClaim",
    ("jobset.x-k8s.io/v1alpha2", "jobsets"): "JobSet",
    ("trainer.kubeflow.org/v1alpha1", "trainjobs"): "TrainJob",
    ("trainer.kubeflow.org/v1alpha1", "trainingruntimes"): "TrainingRuntime",
    ("batch.volcano.sh/v1alpha1", "jobs"): "Job",
    ("v1", "secrets"): "Secret",
    ("v1", "serviceaccounts"): "ServiceAccount",
    ("scheduling.k8s.io/v1", "priorityclasses"): "PriorityClass",
    ("scheduling.volcano.sh/v1beta1", "queues"): "Queue",
    ("authorization.k8s.io/v1", "selfsubjectaccessreviews"): "SelfSubjectAccessReview",
    ("kueue.x-k8s.io/v1beta1", "localqueues"): "LocalQueue",
    ("kueue.x-k8s.io/v1beta2", "localqueues"): "LocalQueue",
    ("kueue.x-k8s.io/v1beta1", "workloads"): "Workload",
    ("kueue.x-k8s.io/v1beta2", "workloads"): "Workload",
}
PATH = re.compile(
    r"/(?:api/(v1)|apis/([^/]+/[^/]+))(?:/namespaces/([^/]+))?/([^/]+)(?:/([^/]+)(?:/([^/]+))?)?"
)
REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "AlreadyExists",
    410: "Expired", 422: "Invalid", 429: "TooManyRequests", 500: "InternalError",
    503: "ServiceUnavailable",
}  # fmt: skip


class Refused(Exception):
    """An answer that is a Status."""

    def __init__(self, code: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.headers = code, message, headers or {}

    def status(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": self.message,
            "reason": REASONS.get(self.code, "Unknown"),
            "code": self.code,
        }


@dataclass
class Fault:
    """What the next requests to a place get instead of their answer."""

    method: str
    path: str
    """A regular expression that matches somewhere."""
    code: int = 0
    message: str = "told to fail"
    times: int = 1
    hang: bool = False
    drop: bool = False
    """Do it, but break the connection instead of answering."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class LogFile:
    """What a pod's container printed, as the runtime keeps it."""

    lines: list[tuple[datetime, str]] = field(default_factory=list)
    is_open: bool = True
    lost: str = ""
    """What the kubelet says instead of it, without a time."""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    api: Any
    """The ApiServer."""
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        if self.api.closing.is_set():
            self.close_connection = True
            return
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.api.requests.append((method, self.path))
        fault = self._fault(method)
        try:
            if fault and fault.hang:
                self.api.closing.wait(60)
            if fault and fault.code:
                raise Refused(fault.code, fault.message, fault.headers)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "Unauthorized")
            if url.path == "/version":
                self._send(200, {"gitVersion": "v1.36.0"})
                return
            found = PATH.fullmatch(unquote(url.path))
            place = (found[1] or found[2], found[4]) if found else ("", "")
            if not found or place not in self.api.installed:
                self._send(404, "404 page not found\n", "text/plain; charset=utf-8")
                return
            key = (place[0], place[1], found[3] or "")
            answer = self._do(method, key, found[5] or "", found[6] or "", query, body)
            if fault and fault.drop:
                self.close_connection = True
                self.connection.close()
            elif answer is not None:
                self._send(*answer)
        except Refused as refused:
            self._send(refused.code, refused.status(), headers=refused.headers)

    def _fault(self, method: str) -> Fault | None:
        for fault in self.api.faults:
            if fault.method == method and re.search(fault.path, self.path):
                fault.times -= 1
                if not fault.times:
                    self.api.faults.remove(fault)
                return fault
        return None

    def _send(
        self,
        code: int,
        body: Object | str,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    # --- verbs ------------------------------------------------------------------------------------

    def _do(
        self, method: str, key: Key, name: str, part: str, query: dict[str, str], body: Object
    ) -> tuple[int, Object] | None:
        if part == "log":
            return self._log(key, name, query)
        if key[1] == "selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]
            what = "/".join(filter(None, (asked["resource"], asked["subresource"])))
            allowed = (asked["verb"], what) not in self.api.denied
            return 201, body | {"status": {"allowed": allowed}}
        if method == "POST":
            return self._create(key, query, body)
        if method == "GET" and not name:
            return self._watch(key, query) if query.get("watch") else self._list(key, query)
        there = self.api.objects.get(key, {}).get(name)
        if there is None:
            raise Refused(404, f'{_what(key)} "{name}" not found')
        if method == "GET" and "PartialObjectMetadata" in self.headers["Accept"]:
            return 200, {"kind": "PartialObjectMetadata", "metadata": there["metadata"]}
        if method == "GET":
            assert key[1] != "secrets", "nobody asks for what is in them"
            return 200, there
        if method == "PATCH":
            assert self.headers["Content-Type"] == "application/merge-patch+json"
            return 200, self.api.put(key, _merged(there, body))
        return self._delete(key, name, there, body)

    def _create(self, key: Key, query: dict[str, str], body: Object) -> tuple[int, Object]:
        name = body["metadata"]["name"]
        if body["metadata"].get("namespace", key[2]) != key[2]:
            raise Refused(400, "the namespace of the object does not match the request")
        if (body["apiVersion"], body["kind"]) != (key[0], KINDS[key[:2]]):
            raise Refused(400, f"{body['apiVersion']} {body['kind']} is not of {_what(key)}")
        assert query.get("fieldValidation") == "Strict"
        if faults := schema_faults(body):
            code = 400 if any("unexpected" in fault for fault in faults) else 422
            raise Refused(code, f"{body['kind']} in version is invalid: {'; '.join(faults)}")
        if name in self.api.objects.get(key, {}):
            raise Refused(409, f'{_what(key)} "{name}" already exists')
        if query.get("dryRun") == "All":
            return 201, body
        return 201, self.api.make(key, body)

    def _list(self, key: Key, query: dict[str, str]) -> tuple[int, Object]:
        with self.api.changed:
            items = [
                thing for thing in self.api.objects.get(key, {}).values() if _fits(thing, query)
            ]
            version = str(self.api.version)
        kind = f"{KINDS[key[:2]]}List"
        return 200, {"kind": kind, "metadata": {"resourceVersion": version}, "items": items}

    def _delete(self, key: Key, name: str, there: Object, body: Object) -> tuple[int, Object]:
        assert body["kind"] == "DeleteOptions"
        if key[1] == "pods":  # the kubelet removes it, once its processes are gone
            grace = body.get("gracePeriodSeconds")
            there["metadata"]["deletionTimestamp"] = datetime.now(UTC).strftime("%FT%TZ")
            there["metadata"]["deletionGracePeriodSeconds"] = (
                there["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
            )
            return 200, self.api.put(key, there)
        assert body["propagationPolicy"] == "Background"
        self.api.remove(key, name)
        return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    # --- streams ----------------------------------------------------------------------------------

    def _begin_stream(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _watch(self, key: Key, query: dict[str, str]) -> None:
        seen = int(query.get("resourceVersion") or self.api.version)
        deadline = time.monotonic() + float(query.get("timeoutSeconds") or 60)
        self._begin_stream("application/json")
        with suppress(OSError):
            if seen < self.api.oldest:
                expired = Refused(410, f"too old resource version: {seen} ({self.api.oldest})")
                self._chunk(json.dumps({"type": "ERROR", "object": expired.status()}) + "\n")
            elif query.get("allowWatchBookmarks"):
                mark = {"kind": KINDS[key[:2]], "metadata": {"resourceVersion": str(seen)}}
                self._chunk(json.dumps({"type": "BOOKMARK", "object": mark}) + "\n")
            while seen >= self.api.oldest and not self.api.closing.is_set():
                with self.api.changed:
                    left = deadline - time.monotonic()
                    news = [event for event in self.api.events if event[0] > seen]
                    if not news and left > 0:
                        self.api.changed.wait(min(left, 0.5))
                        continue
                seen = news[-1][0] if news else seen
                for _, kind, where, thing in news:
                    if where == key and _fits(thing, query):
                        self._chunk(json.dumps({"type": kind, "object": thing}) + "\n")
                if time.monotonic() > deadline:
                    break
            self._chunk("")  # the end

    def _log(self, key: Key, name: str, query: dict[str, str]) -> None:
        pod = self.api.objects.get(key, {}).get(name)
        if pod is None:
            raise Refused(404, f'pods "{name}" not found')
        if query["container"] not in [one["name"] for one in pod["spec"]["containers"]]:
            raise Refused(400, f"container {query['container']} is not valid for pod {name}")
        if not pod.get("status", {}).get("containerStatuses"):
            raise Refused(400, f'container in pod "{name}" is waiting to start: ContainerCreating')
        since = datetime.fromisoformat(query.get("sinceTime", "1970-01-01T00:00:00Z"))
        log, shown = self.api.logs.setdefault(pod["metadata"]["uid"], LogFile()), 0
        self._begin_stream("text/plain")
        with suppress(OSError):
            if log.lost:
                self._chunk(log.lost)
            while not self.api.closing.is_set():
                with self.api.changed:
                    lines = log.lines[shown:]
                    if not lines and log.is_open and query.get("follow") == "true":
                        self.api.changed.wait(0.5)
                        continue
                shown += len(lines)
                text = "".join(
                    f"{when:%FT%T}.{when.microsecond * 1000:09d}Z {line}\n"
                    if query.get("timestamps") == "true"
                    else f"{line}\n"
                    for when, line in lines
                    if when >= since
                )
                if text:
                    self._chunk(text)
                if not lines:
                    break
            self._chunk("")


def _what(key: Key) -> str:
    group = key[0].rpartition("/")[0]
    return f"{key[1]}.{group}" if group else key[1]


def _fits(thing: Object, query: dict[str, str]) -> bool:
    labels = thing["metadata"].get("labels") or {}
    wanted = [
        pair.split("=", 1) for pair in filter(None, query.get("labelSelector", "").split(","))
    ]
    fields = [
        pair.split("=", 1) for pair in filter(None, query.get("fieldSelector", "").split(","))
    ]
    return all(labels.get(name) == value for name, value in wanted) and all(
        thing.get(name) == value for name, value in fields
    )


def _merged(below: Any, above: Any) -> Any:
    """RFC 7386."""
    if not isinstance(above, dict) or not isinstance(below, dict):
        return above
    mixed = {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}
    return {key: value for key, value in mixed.items() if value is not None}
