# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The API server of a Kubernetes cluster: objects made, looked at, watched and deleted; pods' logs.

The one place that imports the `kubernetes` package, and only once something is asked. Objects are
plain data, as their kinds are other projects'. Every request has a timeout; what the server is too
busy for is asked again a few times. All that goes wrong is a KubernetesError of one line.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from typing import Any
from urllib.parse import quote

from titan_recipes.config.data_root import install_command
from titan_recipes.launch.kubernetes_errors import (
    EXISTS,
    GONE,
    UNAUTHORIZED,
    UNREACHED,
    KubernetesError,
    NotInstalled,
    refusal,
    words_of,
)
from titan_recipes.render.kubernetes import ApiResource

POD = ApiResource("", "v1", "pods", "Pod")
EVENT = ApiResource("", "v1", "events", "Event")
REVIEW = ApiResource(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview"
)
METADATA_ALONE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
CONNECT_SECONDS, READ_SECONDS = 5.0, 20.0
SILENCE_SECONDS = 30.0
"""How long a stream may say nothing before it is asked for anew: its other end may be gone."""
BUSY = (429, 500, 502, 503, 504)
BACKOFF_SECONDS = (0.25, 0.5, 1.0, 2.0)
MOST_BACKOFF_SECONDS = 10.0
Object = dict[str, Any]


class Stream:
    """The lines of an answer that goes on: a log that is followed, a watch."""

    def __init__(self, response: Any, where: str) -> None:
        self._response, self._where = response, where
        self._is_closed = threading.Event()

    def lines(self) -> Iterator[list[str]]:
        """Whole lines, as many as came at once; a last one without newline too.

        Raises KubernetesError where it breaks off.
        """
        from urllib3.exceptions import HTTPError

        torn = b""
        try:
            for chunk in self._response.stream(amt=None, decode_content=False):
                *whole, torn = (torn + chunk).split(b"\n")
                if whole:
                    yield [line.decode("utf-8", "replace") for line in whole]
        except (HTTPError, OSError, ValueError, AttributeError) as error:
            if not self._is_closed.is_set():  # closed under its reader, it fails in many ways
                raise KubernetesError(f"{self._where}: broke off: {words_of(error)}") from error
        finally:
            with suppress(HTTPError, OSError):
                self._response.close()
        if torn:
            yield [torn.decode("utf-8", "replace")]

    def close(self) -> None:
        """End it from another thread: whoever waits for its next line waits no more."""
        self._is_closed.set()
        connection = self._response.connection
        if connection is not None and connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)


class Api:
    """The API server of one context."""

    def __init__(self, client: Any, host: str) -> None:
        self._client, self.host = client, host

    def server_version(self) -> str:
        """Such as v1.36.0. Raises KubernetesError."""
        what = "get the version"
        return self._parsed(self._request("GET", "/version", what), what)["gitVersion"]

    def allows(self, verb: str, resource: ApiResource, namespace: str, part: str = "") -> bool:
        """Whether we may do this to these objects, or to a part of them. Raises KubernetesError."""
        attributes = {
            "verb": verb,
            "group": resource.group,
            "resource": resource.plural,
            "subresource": part,
            "namespace": namespace,
        }
        body: Object = {"apiVersion": REVIEW.api_version, "kind": REVIEW.kind}
        body["spec"] = {"resourceAttributes": attributes}
        return bool(self._json("POST", REVIEW, body=body)["status"].get("allowed"))

    # --- objects ----------------------------------------------------------------------------------

    def create(
        self, resource: ApiResource, namespace: str, body: Object, *, dry_run: bool = False
    ) -> Object:
        """Make an object; a field that the server does not know is an error.

        dry_run: the server does all but keep it.

        Raises KubernetesError, with EXISTS where there is one of that name. A try whose answer was
        lost may have made it: one that is there then and has the same annotations is taken for it,
        and the error of a last try is `in_doubt`.
        """
        unsure, strict = False, {"fieldValidation": "Strict", "dryRun": "All" if dry_run else ""}
        for wait in (*BACKOFF_SECONDS, None):
            try:
                return self._json("POST", resource, namespace, query=strict, body=body, once=True)
            except KubernetesError as error:
                if error.status == EXISTS and unsure:
                    with suppress(KubernetesError):  # the first error is the one to tell
                        there = self.get(resource, namespace, body["metadata"]["name"])
                        if there and _marks(there) == _marks(body):
                            return there
                may_help = error.status in BUSY or (error.status == UNREACHED and _was_sent(error))
                unsure = error.in_doubt = unsure or may_help
                if wait is None or not may_help:
                    raise
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def get(self, resource: ApiResource, namespace: str, name: str) -> Object | None:
        """An object; None where there is none of that name. Raises KubernetesError."""
        try:
            return self._json("GET", resource, namespace, name)
        except KubernetesError as error:
            if error.status == GONE and not isinstance(error, NotInstalled):
                return None
            raise

    def exists(self, versions: Sequence[ApiResource], namespace: str, name: str) -> bool:
        """Whether there is an object; what is in it is not asked for. Raises KubernetesError.

        versions: of its kind, the first that the cluster has is asked for; namespace "" = of a kind
        that has none.
        """
        *others, last = versions
        for resource in others:
            with suppress(NotInstalled):
                return self.exists([resource], namespace, name)
        try:
            self._json("GET", last, namespace, name, headers={"Accept": METADATA_ALONE})
        except KubernetesError as error:
            if error.status != GONE or isinstance(error, NotInstalled):
                raise
            return False
        return True

    def find(
        self, resource: ApiResource, namespace: str, *, labels: str = "", fields: str = ""
    ) -> tuple[list[Object], str]:
        """(the objects that the selectors fit, the version to watch from). Raises KubernetesError.

        Never an older state than the last one: a pod that is not there is gone for good.
        """
        query = {"labelSelector": labels, "fieldSelector": fields}
        found = self._json("GET", resource, namespace, query=query)
        return found.get("items") or [], found["metadata"].get("resourceVersion", "")

    def delete(
        self, resource: ApiResource, namespace: str, name: str, *, grace_seconds: int | None = None
    ) -> bool:
        """Delete an object and, in the background, what it owns; whether there was one.

        grace_seconds: of a pod; None = its own. Raises KubernetesError.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        options["propagationPolicy"] = "Background"
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            self._json("DELETE", resource, namespace, name, body=options)
        except KubernetesError as error:
            if error.status == GONE:
                return False
            raise
        return True

    def own(self, resource: ApiResource, namespace: str, name: str, owner: Object) -> None:
        """Let an object go with another one. Raises KubernetesError."""
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
        }
        body = {"metadata": {"ownerReferences": [reference]}}
        kind = {"Content-Type": "application/merge-patch+json"}
        self._json("PATCH", resource, namespace, name, body=body, headers=kind)

    # --- streams ----------------------------------------------------------------------------------

    def watch(
        self, resource: ApiResource, namespace: str, *, labels: str, version: str, seconds: int
    ) -> Stream:
        """What changes after a version, as one JSON object a line, for some seconds.

        Raises KubernetesError, with EXPIRED where the server no longer knows that version.
        """
        query = {
            "watch": "true",
            "labelSelector": labels,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        what = f"watch {resource.plural}"
        response = self._request("GET", _path(resource, namespace), what, query=query, stream=True)
        return Stream(response, f"{self.host}: {what}")

    def log(
        self, namespace: str, pod: str, container: str, *, since: str = "", follow: bool = False
    ) -> Stream:
        """A container's log, each line after the time it was written.

        since: RFC 3339, whole seconds; "" = from its beginning. Raises KubernetesError.
        """
        query = {"container": container, "timestamps": "true"}
        query |= {"sinceTime": since} if since else {}
        query |= {"follow": "true"} if follow else {}
        path, what = f"{_path(POD, namespace, pod)}/log", f"get the log of pod {pod}"
        return Stream(
            self._request("GET", path, what, query=query, stream=True), f"{self.host}: {what}"
        )

    # --- one request ------------------------------------------------------------------------------

    def _json(
        self,
        method: str,
        resource: ApiResource,
        namespace: str = "",
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
        once: bool = False,
    ) -> Object:
        verb = {"POST": "create", "GET": "get" if name else "list"}.get(method, method.lower())
        group = f".{resource.group}" if resource.group else ""
        what = f"{verb} {resource.plural}{group}" + (f" {name}" if name else "")
        path = _path(resource, namespace, name)
        what += f" in namespace {namespace}" if namespace else ""
        return self._parsed(
            self._request(method, path, what, query, body, headers, once=once), what
        )

    def _parsed(self, text: str, what: str) -> Object:
        try:
            return json.loads(text)
        except ValueError as error:
            got = f"{self.host}: {what}: not the answer of a Kubernetes API server: {text[:80]!r}"
            raise KubernetesError(f"{got}; see the kubeconfig's server") from error

    def _request(
        self,
        method: str,
        path: str,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        once: bool = False,
        stream: bool = False,
    ) -> Any:
        """The answer's text, or, for a stream, the response. Raises KubernetesError."""
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config import ConfigException
        from urllib3.exceptions import HTTPError, ProtocolError

        waits = () if once else BACKOFF_SECONDS
        for wait in (*waits, None):
            try:
                response = self._client.call_api(
                    path,
                    method,
                    query_params=[(key, value) for key, value in (query or {}).items() if value],
                    header_params={"Accept": "application/json, */*", **(headers or {})},
                    body=body,
                    auth_settings=["BearerToken"],
                    _preload_content=False,
                    _request_timeout=(
                        CONNECT_SECONDS,
                        SILENCE_SECONDS if stream else READ_SECONDS,
                    ),
                )
                return response if stream else response.data.decode("utf-8", "replace")
            except ApiException as error:
                if error.status == UNAUTHORIZED:
                    _connected.cache_clear()  # the next `connect` reads a new login
                if error.status not in BUSY or wait is None:
                    raise refusal(self.host, error, what, path) from error
                time.sleep(_backoff_seconds(wait, error.headers or {}))
            except (HTTPError, OSError, ConfigException) as error:
                if isinstance(error, ProtocolError) and wait is not None:  # one kept open too long
                    time.sleep(wait)
                    continue
                cure = "is the cluster up, and the kubeconfig's server reachable from here?"
                raise KubernetesError(f"{self.host}: {words_of(error)}; {cure}") from error
        raise AssertionError("the last try returns or raises")


def connect(context: str = "") -> Api:
    """The API server of a context of the kubeconfig; "" = the current one.

    In a pod without a kubeconfig, the pod's own cluster. Raises KubernetesError where the package,
    the kubeconfig or the context is missing. Nothing is asked yet.
    """
    return _connected(context, os.environ.get("KUBECONFIG") or "~/.kube/config")


def check_installed() -> None:
    """Raises KubernetesError where the `kubernetes` package is missing."""
    try:
        import_module("kubernetes.client")
    except ImportError as error:
        got = f"the Kubernetes client is not installed here ({error.name or error})"
        raise KubernetesError(f"{got}; {install_command('kubernetes')}") from error


@lru_cache(maxsize=8)
def _connected(context: str, files: str) -> Api:
    check_installed()
    from kubernetes import client, config
    from yaml import YAMLError

    configuration = client.Configuration()
    shown = os.path.expanduser(files)
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and not any(
            map(os.path.exists, shown.split(os.pathsep))
        ):
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(
                config_file=shown, context=context or None, client_configuration=configuration
            )
    except config.ConfigException as error:
        cure = "set KUBECONFIG, and kubernetes.context where it is not the current one"
        if context and "/contexts" in str(error):
            message = f"no context {context!r} in {shown}; see: kubectl config get-contexts"
        elif "No configuration found" in str(error):
            message = f"{shown}: no kubeconfig there; {cure}"
        else:
            message = f"{shown}: {words_of(error)}; {cure}"
        raise KubernetesError(message) from error
    except (OSError, YAMLError, ValueError, TypeError) as error:
        raise KubernetesError(f"{shown}: not a kubeconfig: {words_of(error)}") from error
    # They are ours: urllib3 would log its own.
    configuration.retries = False  # pyright: ignore[reportAttributeAccessIssue]
    return Api(client.ApiClient(configuration), configuration.host)


def _path(resource: ApiResource, namespace: str, name: str = "") -> str:
    root = f"apis/{resource.group}" if resource.group else "api"
    inside = ["namespaces", quote(namespace, safe="")] if namespace else []
    parts = [root, resource.version, *inside, resource.plural]
    return "/" + "/".join([*parts, quote(name, safe="")] if name else parts)


def _marks(body: Object) -> Mapping[str, str]:
    marks = body["metadata"].get("annotations") or {}
    return {key: value for key, value in marks.items() if key.startswith("titan-recipes/")}


def _was_sent(error: KubernetesError) -> bool:
    """Whether the server may have got a request that failed: it was not refused the connection."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    return not isinstance(error.__cause__, NewConnectionError | ConnectTimeoutError)


def _backoff_seconds(wait: float, headers: Mapping[str, str]) -> float:
    """How long to wait: as long as the server asks for, or `wait`."""
    asked = headers.get("Retry-After", "")
    return min(float(asked) if asked.isdecimal() else wait, MOST_BACKOFF_SECONDS)
