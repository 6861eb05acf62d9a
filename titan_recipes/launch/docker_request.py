"""The container of a run: everything that the engine is asked for, and the same as `docker run`.

The run directory is mounted at its own path, so that every path in it means the same inside and
outside; so is what the job names (`docker_inputs`). The processes have the user's uid, no
capability and no way to gain one. What a request holds depends on the job and on who asks, never
on the engine, so a dry run needs none; `titan_docker` adds what only the engine can say.
"""

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from titan_recipes.config.job import Job
from titan_recipes.launch.docker_inputs import cache_folder, read_folders, with_homes
from titan_recipes.launch.image import DEFAULT_IMAGE, image_reference, local_image
from titan_recipes.launch.record import RUN_DIR_FLAG
from titan_recipes.render.sbatch import asks_for_gpus

DOCKER_SH = "docker.sh"
RUN_DIR_LABEL = "titan-recipes.run-dir"
UID_LABEL = "titan-recipes.uid"
NETWORK = "torchx"
"""The network that torchx makes: a container reaches the internet, nobody reaches it."""
LOOPBACK = ("localhost", "::ffff:127.0.0.1")
"""Name and address that a container's hosts file lacks: torch's store looks the address up, 10 s
each time where no name server answers, which is half a minute of every start."""
HASH_DIGITS = 8
HOSTNAME_LENGTH = 63
SHM_GIB = 16
"""A limit, not a reservation: NCCL's and the data loaders' buffers are in /dev/shm, for which
docker's 64 MiB are too few. It is the container's own, unlike with --ipc=host: what a killed run
leaves there is gone with it, and no two runs meet in it."""
STACK_BYTES = 64 * 2**20
"""With memlock unlimited, what NVIDIA advises for PyTorch's containers."""
STOP_MARGIN_SECONDS = 30
"""Beyond fault_tolerance.grace_seconds, for the node entry point to end and say so."""
READ_ONLY = ":ro"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A path of this machine in the container."""

    source: str
    target: str
    read_only: bool = False

    def __str__(self) -> str:
        """As `docker run --mount` takes it."""
        words = ["type=bind", f"source={self.source}", f"target={self.target}"]
        words += ["readonly"] if self.read_only else []
        return ",".join(map(_csv_field, words))


def _csv_field(text: str) -> str:
    """A path may hold commas: docker reads the words as a line of CSV."""
    doubled = text.replace('"', '""')
    return f'"{doubled}"' if "," in text or '"' in text else text


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRequest:
    """What the engine is asked for."""

    name: str
    """Made of the run directory: no engine runs two containers of one run."""
    image: str
    command: tuple[str, ...]
    mounts: tuple[Mount, ...]
    user: str
    """`uid:gid` of whoever launches."""
    groups: tuple[int, ...]
    """Their other groups, by which shared data may be readable."""
    working_dir: str
    """Where the run was launched: relative paths in the job start there."""
    env: Mapping[str, str]
    secrets: tuple[str, ...]
    """Names of variables whose values only the engine gets."""
    labels: Mapping[str, str]
    stop_seconds: int
    num_gpus: int = 0
    gpu_ids: tuple[str, ...] = ()
    """Which GPUs, as CUDA_VISIBLE_DEVICES names them; () = the first ones."""
    caches: tuple[str, ...] = ()
    """Folders among the mounts that are made where they are missing."""
    raises_limits: bool = False
    """Ask for memlock and stack above the engine's own, as GPUs want them."""
    remaps: bool = True
    """False = asks an engine that remaps users not to."""

    @property
    def hostname(self) -> str:
        return self.name[:HOSTNAME_LENGTH].rstrip("-_.")

    def __str__(self) -> str:
        return script(self)


def container_name(run_dir: Path) -> str:
    """The name of a run's container: `<run>-<hash of its path>`."""
    return f"{run_dir.name}-{sha256(str(run_dir).encode()).hexdigest()[:HASH_DIGITS]}"


def image_of(job: Job) -> str:
    """The job's image; a profile of SLURM names files, which no engine runs."""
    container = job.site.container
    named = container.image if container.runtime not in ("pyxis", "apptainer") else ""
    return named or DEFAULT_IMAGE


def recorded_image(image: str) -> str:
    """The image by its digest or ID where it is on record: no engine is asked."""
    reference = image_reference(image)
    return reference if reference != image else local_image(image)


def container_request(
    job: Job, run_dir: Path, *, image: str, working_dir: str, resumed: bool = False
) -> ContainerRequest:
    """The container that trains a job in a run directory, which is absolute and without links."""
    module = [job.site.container.python, "-P", "-m", "titan_recipes.launch.node"]
    name = container_name(run_dir)
    command = [*module, RUN_DIR_FLAG, str(run_dir), "--run-id", name]
    cache, caches, env = cache_folder(job), list[str](), {**job.env}
    if cache is not None:
        caches.append(str(cache))
        env.setdefault("TITAN_RECIPES_CACHE", str(cache))
    if job.compile.enable and job.compile.cache_dir:
        caches.append(os.path.abspath(job.compile.cache_dir))
    elif job.compile.enable and cache is not None:  # other compilers than this machine's
        folder = cache / f"compile-{sha256(image.encode()).hexdigest()[:HASH_DIGITS]}"
        env.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    request = ContainerRequest(
        name=name,
        image=image,
        command=(*command, *(["--resumed"] if resumed else [])),
        mounts=tuple(_mounts(job, run_dir, caches)),
        user=f"{os.getuid()}:{os.getgid()}",
        groups=tuple(group for group in sorted(os.getgroups()) if group != os.getgid()),
        working_dir=working_dir,
        env=env,
        secrets=tuple(sorted(job.site.secrets)),
        labels={RUN_DIR_LABEL: str(run_dir), UID_LABEL: str(os.getuid())},
        stop_seconds=job.fault_tolerance.grace_seconds + STOP_MARGIN_SECONDS,
        caches=tuple(caches),
    )
    return with_gpus(request, job.plan.gpus_per_node if asks_for_gpus(job) else 0)


def docker_files(job: Job, run_dir: str) -> dict[str, str]:
    """docker.sh as a launch into this run directory writes it, as far as no engine is asked."""
    image, root = recorded_image(image_of(job)), Path(os.path.realpath(run_dir))
    request = container_request(with_homes(job), root, image=image, working_dir=os.getcwd())
    return {DOCKER_SH: script(request)}


def with_gpus(request: ContainerRequest, num_gpus: int) -> ContainerRequest:
    """The request with that many GPUs, of those that CUDA_VISIBLE_DEVICES leaves."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if num_gpus else ""
    ids = tuple(filter(None, (part.strip() for part in visible.split(","))))
    raises_limits = num_gpus > 0
    return replace(request, num_gpus=num_gpus, gpu_ids=ids[:num_gpus], raises_limits=raises_limits)


def _mounts(job: Job, run_dir: Path, caches: list[str]) -> Iterator[Mount]:
    """The profile's mounts; then what they do not show already."""
    shown = {source: target.removesuffix(READ_ONLY) for source, target in job.site.mounts.items()}
    for source, target in job.site.mounts.items():
        yield Mount(source=source, target=shown[source], read_only=target.endswith(READ_ONLY))
    targets = [Path(target) for target in shown.values()]
    for path in read_folders(job):
        if not any(path.is_relative_to(target) for target in targets):
            yield Mount(source=str(path), target=str(path), read_only=True)
    for path in dict.fromkeys([*caches, str(run_dir)]):
        if path not in shown.values():
            yield Mount(source=path, target=path)


def script(request: ContainerRequest) -> str:
    """The request as a shell script that makes the same container; the run directory is there."""
    lines = [" ".join(map(shlex.quote, words)) for words in _docker_run(request)]
    lines.append(" ".join(map(shlex.quote, request.command)))
    head = ["#!/bin/sh", "# What --scheduler docker asks the engine for; the job is job.toml."]
    if request.secrets:
        named = " ".join(request.secrets)
        head.append(f"# By hand: export {named} first, their values are nowhere in here.")
    return "\n".join([*head, " \\\n  ".join(lines), ""])


def _docker_run(request: ContainerRequest) -> Iterator[list[str]]:
    """`docker run` up to the image, the words that belong together in a line."""
    yield ["docker", "run", "--detach", "--name", request.name]
    yield ["--hostname", request.hostname]
    for name, value in sorted(request.labels.items()):
        yield ["--label", f"{name}={value}"]
    yield ["--user", request.user, *(w for g in request.groups for w in ("--group-add", str(g)))]
    yield ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    if not request.remaps:
        yield ["--userns", "host"]
    yield ["--network", NETWORK, "--add-host", ":".join(LOOPBACK)]
    yield ["--shm-size", f"{SHM_GIB}g"]
    if request.raises_limits:
        yield ["--ulimit", "memlock=-1", "--ulimit", f"stack={STACK_BYTES}"]
    yield ["--stop-timeout", str(request.stop_seconds)]
    if request.gpu_ids:
        yield ["--gpus", f'"device={",".join(request.gpu_ids)}"']
    elif request.num_gpus:
        yield ["--gpus", str(request.num_gpus)]
    for mount in request.mounts:
        yield ["--mount", str(mount)]
    yield ["--workdir", request.working_dir]
    for name, value in sorted(request.env.items()):
        yield ["--env", f"{name}={value}"]
    for name in request.secrets:
        yield ["--env", name]
    yield [request.image]
