"""A small Kubernetes API server: real TCP, objects in memory, bodies held against their schemas.

It speaks what the client asks for, as a real one of 1.36 does: create with strict validation, get,
list, merge patch, delete, watch with bookmarks, pod logs with times. What makes pods of objects is
in `pod_cluster`. It can be told to fail: `fail_next`.
"""

import json
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.kubernetes.api_handler import KINDS, TOKEN, Fault, Handler, Key, LogFile, Object


class ApiServer:
    """The state and the threads that serve it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.objects: dict[Key, dict[str, Object]] = {}
        self.events: list[tuple[int, str, Key, Object]] = []
        self.logs: dict[str, LogFile] = {}  # by the pod's uid
        self.requests: list[tuple[str, str]] = []
        self.installed = {*KINDS}
        self.faults: list[Fault] = []
        self.denied: set[tuple[str, str]] = set()
        """(verb, resource) that a review of access says no to."""
        self.on_change: list[Callable[[str, Key, Object], None]] = []
        self.version = 100
        self.oldest = 0
        self.closing = threading.Event()
        server = self

        class OwnHandler(Handler):
            api = server

        self._http = _Server(("127.0.0.1", 0), OwnHandler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def write_kubeconfig(self, path: Path, token: str = TOKEN) -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": token}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def fail_next(self, method: str, path: str, code: int = 0, **more: Any) -> None:
        """Let the next requests fail; see Fault."""
        self.faults.append(Fault(method, path, code, **more))

    def stop(self) -> None:
        self.closing.set()
        with self.changed:
            self.changed.notify_all()
        self._http.shutdown()
        self._http.server_close()

    # --- the state, for handlers and for who plays controller -------------------------------------

    def put(self, key: Key, thing: Object, kind: str = "") -> Object:
        """Create or replace an object, as a controller or the server itself does."""
        with self.changed:
            name, there = thing["metadata"]["name"], self.objects.setdefault(key, {})
            kind = kind or ("MODIFIED" if name in there else "ADDED")
            self.version += 1
            thing["metadata"]["resourceVersion"] = str(self.version)
            there[name] = thing
            self._tell(kind, key, thing)
            return thing

    def make(self, key: Key, body: Object) -> Object:
        """A new object, with what a server adds."""
        body["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "creationTimestamp": datetime.now(UTC).strftime("%FT%TZ"),
            "namespace": key[2],
            "generation": 1,
        }
        return self.put(key, body)

    def remove(self, key: Key, name: str) -> Object | None:
        """Delete an object, and what it owns."""
        with self.changed:
            thing = self.objects.get(key, {}).pop(name, None)
            if thing is None:
                return None
            self.version += 1
            self._tell("DELETED", key, thing)
            owned = [
                (other, one["metadata"]["name"])
                for other, there in self.objects.items()
                for one in there.values()
                for owner in one["metadata"].get("ownerReferences", [])
                if owner["uid"] == thing["metadata"]["uid"]
            ]
        for other, owned_name in owned:
            self.remove(other, owned_name)
        return thing

    def _tell(self, kind: str, key: Key, thing: Object) -> None:
        copy = json.loads(json.dumps(thing))
        self.events.append((self.version, kind, key, copy))
        self.changed.notify_all()
        for tell in self.on_change:
            tell(kind, key, copy)

    def print_line(self, uid: str, text: str, when: datetime | None = None) -> None:
        """A line of a pod's container."""
        with self.changed:
            self.logs.setdefault(uid, LogFile()).lines.append((when or datetime.now(UTC), text))
            self.changed.notify_all()

    def close_log(self, uid: str) -> None:
        with self.changed:
            self.logs.setdefault(uid, LogFile()).is_open = False
            self.changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""
