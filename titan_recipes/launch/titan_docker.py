# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""`titan_docker`: torchx's `local_docker` for runs of ours.

torchx's scheduler makes the request: app id, environment, labels, network. Of the rest it knows too
little: it pulls images behind one's back, runs as the image's user, mounts nothing by itself, gives
64 MiB of /dev/shm and 10 s to stop. Here the component is turned back into the job that it carries,
and the container becomes the one that `docker_request` describes.
"""

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from torchx.runner import Runner
from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream
from torchx.schedulers.docker_scheduler import DockerScheduler
from torchx.specs import AppDef, AppDryRunInfo, BindMount, Resource, Role, runopts

from titan_recipes.config.hardware import ANY_GPU
from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job, decode, encode, to_toml
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.config.site import FROM_ENV, FROM_FILE, Site, site_problems
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch import docker_engine
from titan_recipes.launch.docker_check import NOT_HERE, image_cure
from titan_recipes.launch.docker_request import (
    DOCKER_SH,
    RUN_DIR_LABEL,
    ContainerRequest,
    container_request,
    image_of,
    recorded_image,
    script,
    with_gpus,
)
from titan_recipes.launch.logs import log_lines
from titan_recipes.launch.machine import num_gpus
from titan_recipes.launch.record import (
    RUN_DIR_FLAG,
    new_record,
    read_record,
    remember_outputs,
    write_record,
)
from titan_recipes.launch.run_state import recorded
from titan_recipes.launch.runs import Run, find_runs, open_run
from titan_recipes.launch.state import run_status
from titan_recipes.launch.stop import CANCEL_WORD
from titan_recipes.launch.titan_local import APP_STATES, check_new
from titan_recipes.render.sbatch import asks_for_gpus

NAME = "titan_docker"
SESSION = "titan-recipes"
RESUMED = "--resumed"
POLL_SECONDS = 0.1
LEAVE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """What `schedule` starts."""

    app_id: str
    run_dir: Path
    job: Job
    container: ContainerRequest
    resumed: bool

    def __str__(self) -> str:
        """For a dry run: `docker run` and its words."""
        return script(self.container)


def _job_of(app: AppDef) -> tuple[Role, Job]:
    """The component's role, and the job that it carries with what torchx was told beside it.

    Raises LaunchError for what a container of ours has no place for.
    """
    role = app.roles[0]
    if len(app.roles) > 1 or RUN_DIR_FLAG not in role.args or "--job" not in role.args:
        raise LaunchError(f"{NAME} runs only components that titan-recipes rendered")
    job = decode(role.args[role.args.index("--job") + 1])
    if role.num_replicas > 1:
        cure = "choose a plan with nodes = 1, or another scheduler"
        raise LaunchError(f"{app.name}: plan.nodes = {job.plan.nodes}, but this is one; {cure}")
    if role.resource.gpu not in (-1, _num_gpus(job)):
        got = f"--gpu {role.resource.gpu}: the job's plan has {_num_gpus(job)}"
        raise LaunchError(f"{got}; render another plan")
    if role.max_retries:
        cure = "set fault_tolerance.max_restarts in the recipe and render it again"
        raise LaunchError(f"--max_retries {role.max_retries}: the job itself restarts; {cure}")
    if role.resource.cpu > 0 or role.resource.memMB > 0:
        cure = "leave them out, or use torchx's own local_docker"
        raise LaunchError(f"--cpu, --memory_mb: no run of {NAME} has limits of its own; {cure}")
    site = job.site
    container = replace(site.container, image=role.image) if role.image else site.container
    mounts = {**site.mounts, **dict(map(_mount, role.mounts))}
    site = replace(site, container=container, mounts=mounts)
    if problems := [*site_problems(site, "torchx")]:
        raise ConfigError(problems)
    env = {name: value.replace("$$", "$") for name, value in role.env.items()}
    env = {name: value for name, value in env.items() if not name.startswith("TORCHX_")}
    return role, replace(job, site=site, env=env)


def _num_gpus(job: Job) -> int:
    """The GPUs that a component of the job asks for."""
    return job.plan.gpus_per_node if asks_for_gpus(job) else 0


def _mount(mount: object) -> tuple[str, str]:
    if not isinstance(mount, BindMount):
        raise LaunchError(f"--mounts: only type=bind can be mounted, got {mount}")
    return mount.src_path, mount.dst_path + (":ro" if mount.read_only else "")


class TitanDockerScheduler(Scheduler):  # pyright: ignore[reportMissingTypeArgument] - see titan_local
    """One container per run; see the module's docstring."""

    def __init__(self, session_name: str) -> None:
        super().__init__(NAME, session_name)
        self._docker = DockerScheduler(session_name)

    def _run_opts(self) -> runopts:
        return runopts()

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[Request]:
        role, job = _job_of(app)
        run_dir = Path(role.args[role.args.index(RUN_DIR_FLAG) + 1].replace("$$", "$")).resolve()
        torchx = self._docker.submit_dryrun(app, {}).request
        asked: dict[str, Any] = torchx.containers[0].kwargs
        layout, resumed = RunLayout(run_dir), RESUMED in role.args
        container = container_request(
            job,
            run_dir,
            image=recorded_image(image_of(job)),
            working_dir=read_record(layout).cwd if layout.record.exists() else os.getcwd(),
            resumed=resumed,
        )
        env = {**container.env, **asked["environment"], "TORCHX_RANK0_HOST": container.hostname}
        labels = {**container.labels, **asked["labels"]}
        container = replace(container, env=env, labels=labels)
        return AppDryRunInfo(Request(torchx.app_id, run_dir, job, container, resumed), str)

    def schedule(self, dryrun_info: AppDryRunInfo[Request]) -> str:
        asked = dryrun_info.request
        layout = RunLayout(asked.run_dir)
        if not asked.resumed:
            check_new(layout)
        secrets = secret_values(asked.job.site)
        asked = _as_engine_can(asked)
        container = asked.container
        layout.logs.mkdir(parents=True, exist_ok=True)
        for folder in container.caches:
            Path(folder).mkdir(parents=True, exist_ok=True)
        if not layout.record.exists():  # torchx's own `run`
            record = new_record(
                asked.job,
                name=layout.root.name,
                scheduler="docker",
                handle="",
                command=("torchx", *sys.argv[1:]),
                image=container.image,
            )
            replace_file(layout.job, to_toml(asked.job))
            write_record(layout, record)
        _make_room(container.name)
        _remove_ended()
        docker_engine.make_network()
        replace_file(layout.root / DOCKER_SH, script(start_request(container, secrets)))
        remember_outputs(asked.run_dir.parent)
        return asked.app_id

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        run = _run_of(app_id)
        if run is None:
            return None
        status = run_status(run.layout, run.record)
        response = DescribeAppResponse(app_id=app_id, state=APP_STATES[status.state])
        response.roles = [Role(name="trainer", image=run.record.image)]
        response.num_restarts = max(0, len(run.record.attempts) - 1)
        response.msg = status.cause
        response.ui_url = run.layout.root.as_uri()
        return response

    def list(self, cfg: Mapping[str, Any] | None = None) -> list[ListAppResponse]:
        head = f"{NAME}://"
        return [
            ListAppResponse(
                run.record.handle.rpartition("/")[2], APP_STATES[run_status(run.layout).state]
            )
            for run in find_runs()[0]
            if run.record.handle.startswith(head)
        ]

    def _cancel_existing(self, app_id: str) -> None:
        """Ask the run to save and stop; asked again, signal its node entry point too."""
        run = _run_of(app_id)
        assert run is not None, "torchx calls this only for an app that exists"
        asked_before = run.layout.stop.exists()
        run.layout.stop.write_text(CANCEL_WORD, encoding="utf-8")
        container = docker_engine.find_container(app_id=app_id)
        if asked_before and container is not None:
            docker_engine.signal_container(container.id, "SIGTERM")

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        run = _run_of(app_id)
        if run is None:
            raise LaunchError(f"{app_id}: no such run")
        layout = run.layout

        def running() -> bool:
            return not run_status(layout).state.is_final

        lines = log_lines(
            layout, node=k, grep=regex or "", running=running if should_tail else None
        )
        return (f"{line}\n" for line in lines)


def _run_of(app_id: str) -> Run | None:
    """The run of a container, or, once that is removed, of a record that names it."""
    container = docker_engine.find_container(app_id=app_id)
    run_dir = container.labels.get(RUN_DIR_LABEL) if container else None
    if run_dir and RunLayout(Path(run_dir)).record.exists():
        return open_run(Path(run_dir))
    runs, _ = find_runs()
    ours = (run for run in runs if run.record.handle.startswith(f"{NAME}://"))
    return next((run for run in ours if run.record.handle.endswith(f"/{app_id}")), None)


def _as_engine_can(asked: Request) -> Request:
    """The request with what only the engine can say: which image it is, GPUs, who root is.

    Raises LaunchError where no engine answers, or it has no such image.
    """
    job, facts = asked.job, docker_engine.facts()
    image = docker_engine.pinned_image(asked.container.image)
    if image is None:
        named = image_of(job)
        raise LaunchError(f"container.image: {named}: {NOT_HERE}; {image_cure(named)}")
    container = replace(asked.container, image=image, remaps=not facts.remaps_users)
    if facts.is_rootless:
        container = replace(container, user="0:0", groups=())
    if job.plan.gpu == ANY_GPU and facts.gives_gpus:
        container = with_gpus(container, min(num_gpus(), job.plan.gpus_per_node))
    site = replace(job.site, container=replace(job.site.container, image=image))
    return replace(asked, job=replace(job, site=site), container=container)


def start_request(request: ContainerRequest, secrets: Mapping[str, str]) -> ContainerRequest:
    """Start a container; what was asked for in the end. Raises LaunchError, and none is left.

    An engine that may not raise limits itself can give a container none higher than its own.
    """
    container = docker_engine.create(request, secrets)
    try:
        docker_engine.start(container)
    except LaunchError as error:
        docker_engine.remove(container)
        if "rlimit" not in str(error) or not request.raises_limits:
            raise
        why = "the engine may not raise memlock and stack; its own limits hold"
        cure = "RDMA needs memlock unlimited: give it CAP_SYS_RESOURCE"
        print(f"warning: {why}; {cure}", file=sys.stderr)
        return start_request(replace(request, raises_limits=False), secrets)
    except BaseException:
        docker_engine.remove(container)
        raise
    return request


def _make_room(name: str) -> None:
    """Remove the run's last container. Raises LaunchError for one that is at work.

    The node entry point writes down how a run ended, and then takes a moment to leave.
    """
    deadline = time.monotonic() + LEAVE_SECONDS
    while (container := docker_engine.find_container(name=name)) and not container.has_ended:
        if time.monotonic() > deadline:
            raise LaunchError(f"container {name}: at work still; end it: docker stop {name}")
        time.sleep(POLL_SECONDS)
    if container is not None:
        docker_engine.remove(container.id)


def _remove_ended() -> None:
    """Remove the containers of the user's runs that have ended.

    One that was lost stays until its run is resumed: only it says how it ended.
    """
    for container, label in docker_engine.ended_containers(os.getuid()):
        layout = RunLayout(Path(label))
        if not layout.record.exists() or recorded(read_record(layout)):
            docker_engine.remove(container)


def secret_values(site: Site) -> dict[str, str]:
    """What the profile's secrets are, by name. Raises LaunchError for one that is not there."""
    values: dict[str, str] = {}
    for name, source in site.secrets.items():
        if source == FROM_ENV:
            value = os.environ.get(name, "")
        else:
            path = expanded(source.removeprefix(FROM_FILE))
            try:
                value = path.read_text(encoding="utf-8").rstrip("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise LaunchError(f"secrets.{name}: {path}: can't be read: {error}") from error
        if not value:
            where = "not in this environment" if source == FROM_ENV else "empty"
            raise LaunchError(f"secrets.{name}: {where}")
        values[name] = value
    return values


def resume_container(layout: RunLayout, job: Job) -> None:
    """Start a run that has ended again, in a new container. Raises LaunchError."""
    role = Role(
        name="trainer",
        image="",
        args=["--job", encode(job), RUN_DIR_FLAG, str(layout.root).replace("$", "$$"), RESUMED],
        env={name: value.replace("$", "$$") for name, value in job.env.items()},
        resource=Resource(cpu=-1, gpu=_num_gpus(job), memMB=-1),  # torchx takes none for a mistake
    )
    app = AppDef(name=layout.root.name, roles=[role])
    runner = Runner(SESSION, {NAME: create_scheduler})
    runner.schedule(runner.dryrun(app, NAME, {}, workspace=""))


def create_scheduler(session_name: str, **kwargs: object) -> TitanDockerScheduler:
    """torchx's entry point."""
    return TitanDockerScheduler(session_name)
