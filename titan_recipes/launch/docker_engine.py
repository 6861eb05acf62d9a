# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The Docker Engine of this machine: asked and told through Docker's SDK, imported late.

Only this module knows the SDK. What the engine or the way to it fails at is a LaunchError with the
engine's own words. The way to it is the SDK's: DOCKER_HOST, else /var/run/docker.sock.
"""

import os
import shutil
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from titan_recipes.errors import LaunchError
from titan_recipes.launch.docker_request import (
    LOOPBACK,
    NETWORK,
    RUN_DIR_LABEL,
    SHM_GIB,
    STACK_BYTES,
    UID_LABEL,
    ContainerRequest,
)

if TYPE_CHECKING:
    from docker import DockerClient

DEFAULT_HOST = "unix:///var/run/docker.sock"
ENGINE_SECONDS = 60
"""For the engine to answer; making a container may take as long on a busy disk."""
GPU_HOOK = "nvidia-container-runtime-hook"
"""What the engine finds NVIDIA's container toolkit by."""
WHY_SILENT = {
    "Permission denied": "it is not yours to ask: be in the group `docker`, or ask who runs it",
    "No such file": "start it, or set DOCKER_HOST",
    "Connection refused": "start it, or set DOCKER_HOST",
}
"""What the SDK's words hold -> cure."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container as the engine has it."""

    id: str
    name: str
    status: str
    """Docker's own word: created, running, paused, restarting, removing, exited or dead."""
    exit_code: int
    out_of_memory: bool
    error: str
    """Why the engine could not start it; "" = it did."""
    labels: Mapping[str, str]

    @property
    def has_ended(self) -> bool:
        return self.status in ("exited", "dead")

    @property
    def end(self) -> str:
        """How it ended, in a few words."""
        if self.out_of_memory:
            return f"exited with {self.exit_code}: out of memory"
        killed = " (killed)" if self.exit_code == 137 else ""
        return f"exited with {self.exit_code}{killed}" + (f": {self.error}" if self.error else "")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself."""

    gives_gpus: bool
    is_rootless: bool
    """Its root is the user who runs it: as such a container's files are that user's."""
    remaps_users: bool
    """A container's uid is another one outside."""


def host() -> str:
    """Where the engine is looked for."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_HOST


@contextmanager
def _told() -> Generator[None]:
    """Raises LaunchError with the engine's words for what it or the way to it fails at."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except APIError as error:
        raise LaunchError(f"Docker: {error.explanation or error}") from error
    except (DockerException, RequestException, OSError) as error:
        text = str(error)
        cure = next((cure for what, cure in WHY_SILENT.items() if what in text), "see to it first")
        why = next((what for what in WHY_SILENT if what in text), text)
        raise LaunchError(f"no Docker Engine answers at {host()}: {why}; {cure}") from error


@cache
def _client_at(address: str) -> "DockerClient":
    import docker

    if address.startswith("unix://"):  # the SDK would leave the socket open where nobody answers
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(address.removeprefix("unix://"))
    return docker.from_env(timeout=ENGINE_SECONDS)


def _client() -> "DockerClient":
    """One for each address: asking again costs no new connection."""
    return _client_at(host())


def facts() -> EngineFacts:
    """What the engine is. Raises LaunchError where none answers."""
    with _told():
        info: dict[str, Any] = _client().info()
    security = " ".join(info.get("SecurityOptions") or [])
    return EngineFacts(
        gives_gpus="nvidia" in (info.get("Runtimes") or {}) or shutil.which(GPU_HOOK) is not None,
        is_rootless="name=rootless" in security,
        remaps_users="name=userns" in security,
    )


def pinned_image(image: str) -> str | None:
    """The image by its digest, else its ID; None where the engine does not have it."""
    from docker.errors import ImageNotFound

    with _told():
        try:
            found = _client().images.get(image)
        except ImageNotFound:
            return None
    if "@" in image:
        return image
    name = image if ":" not in image.rpartition("/")[2] else image.rpartition(":")[0]
    digests: list[str] = found.attrs.get("RepoDigests") or []
    return next((digest for digest in digests if digest.startswith(f"{name}@")), str(found.id))


def find_container(*, name: str = "", app_id: str = "") -> Container | None:
    """The container of that name or, the newest, of torchx's app id; None = there is none."""
    from docker.errors import NotFound

    with _told():
        api = _client().api
        try:
            if not name:
                label = f"torchx.pytorch.org/app-id={app_id}"
                listed: list[dict[str, Any]] = api.containers(all=True, filters={"label": label})
                if not listed:
                    return None
                name = listed[0]["Id"]
            return _container(api.inspect_container(name))
        except NotFound:
            return None


def _container(inspected: Mapping[str, Any]) -> Container:
    state = inspected["State"]
    return Container(
        id=inspected["Id"],
        name=inspected["Name"].removeprefix("/"),
        status=state["Status"],
        exit_code=state["ExitCode"],
        out_of_memory=state["OOMKilled"],
        error=state["Error"],
        labels=inspected["Config"].get("Labels") or {},
    )


def ended_containers(uid: int) -> list[tuple[str, str]]:
    """(id, run directory) of a user's containers that do not run any more."""
    ours = {"label": [RUN_DIR_LABEL, f"{UID_LABEL}={uid}"], "status": ["exited", "dead"]}
    with _told():
        listed: list[dict[str, Any]] = _client().api.containers(all=True, filters=ours)
    return [(found["Id"], found["Labels"][RUN_DIR_LABEL]) for found in listed]


def create(request: ContainerRequest, secrets: Mapping[str, str]) -> str:
    """Make a container that is not started yet; its id. secrets: name -> value."""
    from docker.types import DeviceRequest, Mount, Ulimit

    mounts = [Mount(m.target, m.source, "bind", read_only=m.read_only) for m in request.mounts]
    limits = [
        Ulimit(name="memlock", soft=-1, hard=-1),
        Ulimit(name="stack", soft=STACK_BYTES, hard=STACK_BYTES),
    ]
    gpus = DeviceRequest(
        count=0 if request.gpu_ids else request.num_gpus,
        device_ids=[*request.gpu_ids],
        capabilities=[["gpu", "compute", "utility"]],
    )
    with _told():
        client = _client()
        made: dict[str, Any] = client.api.create_container(
            request.image,
            [*request.command],
            name=request.name,
            hostname=request.hostname,
            user=request.user,
            working_dir=request.working_dir,
            environment={**request.env, **secrets},
            labels={**request.labels},
            stop_timeout=request.stop_seconds,
            host_config=client.api.create_host_config(
                mounts=mounts,
                network_mode=NETWORK,
                extra_hosts=dict([LOOPBACK]),
                shm_size=SHM_GIB * 2**30,
                ulimits=limits if request.raises_limits else [],
                device_requests=[gpus] if request.num_gpus else None,
                group_add=[str(group) for group in request.groups],
                userns_mode=None if request.remaps else "host",
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
            ),
        )
    return made["Id"]


def start(container: str) -> None:
    """Raises LaunchError with why the engine can't start it."""
    with _told():
        _client().api.start(container)


def signal_container(container: str, name: str) -> None:
    """Signal its first process. One that has ended, or is gone, is left alone."""
    from docker.errors import APIError

    with _told():
        try:
            _client().api.kill(container, name)
        except APIError as error:
            if error.status_code not in (404, 409):
                raise


def remove(container: str) -> None:
    """Remove it, killing it first if it runs; one that is gone is left alone."""
    from docker.errors import NotFound

    with _told():
        try:
            _client().api.remove_container(container, force=True)
        except NotFound:
            return


def last_words(container: str) -> str:
    """The last line that it printed."""
    with _told():
        printed: bytes = _client().api.logs(container, tail=1)
    return printed.decode("utf-8", "replace").strip()


def make_network() -> None:
    """Make the network of torchx's containers, if there is none.

    torchx's own way takes a lock file in /tmp, which the first user keeps from all others.
    """
    from docker.errors import APIError, NotFound

    with _told():
        api = _client().api
        try:
            api.inspect_network(NETWORK)
        except NotFound:
            try:
                api.create_network(NETWORK, driver="bridge", check_duplicate=True)
            except APIError as error:
                if "already exists" not in str(error):
                    raise
