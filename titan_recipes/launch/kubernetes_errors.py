# pyright: reportMissingTypeStubs=false
"""What goes wrong with an API server, each in one line that says what to do."""

import json
import re
from typing import Any, cast

from titan_recipes.errors import LaunchError

UNAUTHORIZED, FORBIDDEN, GONE, EXISTS, EXPIRED = 401, 403, 404, 409, 410
UNREACHED = 0
"""`KubernetesError.status` where no answer came."""
NO_RIGHT = re.compile(r"\bcannot \w+ resource\b")
"""What RBAC says; webhooks, quotas and namespaces that are being deleted answer 403 too."""
INSTALLED_BY = {
    "jobset.x-k8s.io": "JobSet",
    "trainer.kubeflow.org": "Kubeflow Trainer",
    "batch.volcano.sh": "Volcano",
    "scheduling.volcano.sh": "Volcano",
    "kueue.x-k8s.io": "Kueue",
}
"""API group -> what has to be installed in a cluster that lacks it."""


class KubernetesError(LaunchError):
    """What the API server refused or could not be asked; status: HTTP's, or UNREACHED."""

    def __init__(self, message: str, status: int = UNREACHED) -> None:
        super().__init__(message)
        self.status = status
        self.in_doubt = False
        """Whether it may have been done all the same: an answer was lost."""


class NotInstalled(KubernetesError):
    """The cluster does not know the kind at all."""


def refusal(host: str, error: Any, what: str, path: str) -> KubernetesError:
    """What the status that a server gave means."""
    status = int(error.status or UNREACHED)
    said, is_status = said_of(error)
    if status == UNREACHED:  # TLS
        cure = "see certificate-authority in the kubeconfig"
        return KubernetesError(f"{host}: {said}; {cure}")
    if status == UNAUTHORIZED:
        cure = "log in again: the kubeconfig's token or certificate may have expired"
        return KubernetesError(f"{host}: does not know you: {said}; {cure}", status)
    group = path.split("/")[2] if path.startswith("/apis/") else ""
    name = INSTALLED_BY.get(group, group)
    if status == FORBIDDEN and NO_RIGHT.search(said):
        cure = "ask whoever runs the cluster for a role that may"
        cure += f", and whether {name} is installed" if group in INSTALLED_BY else ""
        return KubernetesError(f"not allowed to {what}: {said}; {cure}", status)
    if status == GONE and not is_status and not group:
        got = f"{host}: {what}: not the answer of a Kubernetes API server: {said[:80]!r}"
        return KubernetesError(f"{got}; see the kubeconfig's server", status)
    if status == GONE and not is_status:
        got = f"{host}: has no {group}/{path.split('/')[3]}"
        cure = f"install {name} there, or choose another kubernetes.kind in the profile"
        return NotInstalled(f"{got}; {cure}", status)
    if status == EXISTS and "being deleted" in said:
        return KubernetesError(f"can't {what}: {said}; try again once it is gone", status)
    if status == EXISTS and "exists" in said:
        cure = "choose another --name, or see what it is with kubectl"
        return KubernetesError(f"can't {what}: {said}; {cure}", status)
    return KubernetesError(f"can't {what}: {said} (HTTP {status})", status)


def said_of(error: Any) -> tuple[str, bool]:
    """(what the server said, in one line; whether it is a Status of Kubernetes)."""
    text = " ".join(str(error.body or error.reason or "").split())
    try:
        found: object = json.loads(text)
    except ValueError:
        return text, False
    status = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    if status.get("kind") != "Status":
        return text, False
    return " ".join(str(status.get("message") or status.get("reason") or text).split()), True


def words_of(error: BaseException) -> str:
    """What went wrong with a connection, in a few words."""
    from urllib3.exceptions import (
        ConnectTimeoutError,
        NewConnectionError,
        ProtocolError,
        ReadTimeoutError,
    )

    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return "no connection in time"
    if isinstance(error, ReadTimeoutError):
        return "no answer in time"
    if isinstance(error, NewConnectionError):
        return str(error).rpartition(": ")[2].rpartition("] ")[2]
    if isinstance(error, ProtocolError):
        return f"the connection broke off ({' '.join(str(error).split())})"
    return " ".join(str(error).split()) or type(error).__name__
