# pyright: reportMissingTypeStubs=false
"""`titan_slurm`: a torchx scheduler that submits a run as one homogeneous SLURM job.

What torchx's own `slurm` makes a job component per node, joins environments by commas and asks
sacct for. Here the component is turned back into the job that it carries, what was given beside it
put in its place (`_job_of`), and rendered as train.sbatch. The app id is SLURM's job id.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream
from torchx.specs import AppDef, AppDryRunInfo, AppState, BindMount, Role, macros, runopts

from titan_recipes.config.cluster import check_time
from titan_recipes.config.job import Job, decode, to_toml
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.config.site import site_problems
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch.logs import log_lines
from titan_recipes.launch.record import (
    RUN_DIR_FLAG,
    new_record,
    remember_outputs,
    write_record,
)
from titan_recipes.launch.runs import Run, find_runs
from titan_recipes.launch.slurm_queue import QueuedJob, find_job, scancel
from titan_recipes.launch.slurm_state import slurm_job
from titan_recipes.launch.slurm_submit import script_of, submit
from titan_recipes.launch.state import run_status
from titan_recipes.launch.stop import CANCEL_WORD
from titan_recipes.launch.titan_local import check_new
from titan_recipes.render import Submission
from titan_recipes.render.sbatch import asks_for_gpus

NAME = "titan_slurm"
OPTIONS = {
    "partition": "partition to run in",
    "account": "account to charge",
    "qos": "quality of service",
    "time": "time limit, as SLURM writes it: 4:00:00",
    "constraint": "features that the nodes must have",
    "reservation": "reservation to run in",
    "nodelist": "nodes to run on",
    "exclude": "nodes not to run on",
}
"""sbatch options that torchx takes with -cfg; they win over the cluster profile's."""
APP_STATES = {
    "PENDING": AppState.PENDING,
    "CONFIGURING": AppState.PENDING,
    "REQUEUED": AppState.PENDING,
    "COMPLETED": AppState.SUCCEEDED,
    "CANCELLED": AppState.CANCELLED,
}
"""SLURM's state -> torchx's; another one of a job that has ended is FAILED, else RUNNING."""


@dataclass(frozen=True, slots=True)
class Request:
    """What `schedule` submits."""

    run_dir: Path
    job: Job
    script: str

    def __str__(self) -> str:
        """For a dry run: the script."""
        return self.script


def _job_of(role: Role, cfg: Mapping[str, Any]) -> Job:
    """The job that a component carries, with what torchx was told beside it.

    Raises LaunchError for what a SLURM job of ours has no place for.
    """
    job = decode(role.args[role.args.index("--job") + 1])
    site, wanted = job.site, role.resource
    gpus = job.plan.gpus_per_node if asks_for_gpus(job) else 0
    if wanted.gpu not in (-1, gpus):
        raise LaunchError(f"--gpu {wanted.gpu}: the job's plan has {gpus}; render another plan")
    if role.max_retries:
        cure = "set fault_tolerance.max_restarts in the recipe and render it again"
        raise LaunchError(f"--max_retries {role.max_retries}: the job itself restarts; {cure}")
    asked = {name: value for name in OPTIONS if (value := cfg.get(name)) is not None}
    asked |= {"cpus-per-task": wanted.cpu} if wanted.cpu > 0 else {}
    asked |= {"mem": f"{wanted.memMB}M"} if wanted.memMB > 0 else {}
    container = replace(site.container, image=role.image) if role.image else site.container
    if (role.image or role.mounts) and container.runtime == "none":
        cure = "set [container] runtime in the cluster profile and render it again"
        raise LaunchError(f"--image, --mounts: the job has no container; {cure}")
    mounts = {**site.mounts, **dict(map(_mount, role.mounts))}
    site = replace(site, slurm={**site.slurm, **asked}, container=container, mounts=mounts)
    if problems := [*site_problems(site, "torchx")]:
        raise ConfigError(problems)
    if problems := check_time(job.fault_tolerance.grace_seconds, site, "torchx"):
        raise ConfigError(problems)
    env = {name: value for name, value in role.env.items() if not name.startswith("TORCHX_")}
    return replace(job, site=site, env=env)  # without torchx's own words on the app


def _mount(mount: object) -> tuple[str, str]:
    if not isinstance(mount, BindMount):
        raise LaunchError(f"--mounts: only type=bind can be mounted, got {mount}")
    return mount.src_path, mount.dst_path + (":ro" if mount.read_only else "")


class SlurmScheduler(Scheduler):  # pyright: ignore[reportMissingTypeArgument] - see titan_local
    """One SLURM job per run; see the module's docstring."""

    def __init__(self, session_name: str) -> None:
        super().__init__(NAME, session_name)

    def _run_opts(self) -> runopts:
        options = runopts()
        for name, words in OPTIONS.items():
            options.add(name, type_=str, help=words)
        options.add("after", type_=str, help="ids of jobs that have to succeed first: 12,13")
        return options

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[Request]:
        role = app.roles[0]
        if len(app.roles) > 1 or RUN_DIR_FLAG not in role.args or "--job" not in role.args:
            raise LaunchError(f"{NAME} runs only components that titan-recipes rendered")
        values = macros.Values(img_root="", app_id="", replica_id="", rank0_env="")
        job = _job_of(values.apply(role), cfg)
        run_dir = Path(role.args[role.args.index(RUN_DIR_FLAG) + 1].replace("$$", "$")).absolute()
        after = tuple(filter(None, (cfg.get("after") or "").split(",")))
        python = role.entrypoint if not role.image else sys.executable
        submission = Submission(run_dir=str(run_dir), after=after, python=python)
        return AppDryRunInfo(Request(run_dir, job, script_of(job, submission)), str)

    def schedule(self, dryrun_info: AppDryRunInfo[Request]) -> str:
        request = dryrun_info.request
        layout = RunLayout(request.run_dir)
        check_new(layout)
        layout.root.mkdir(parents=True, exist_ok=True)
        if not layout.record.exists():  # torchx's own `run`
            record = new_record(
                request.job,
                name=layout.root.name,
                scheduler="slurm",
                handle="",
                command=("torchx", *sys.argv[1:]),
                image=request.job.site.container.image,
            )
            replace_file(layout.job, to_toml(request.job))
            write_record(layout, record)
        job_id = submit(layout, request.script)
        remember_outputs(request.run_dir.parent)
        return job_id

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        job = find_job(app_id)
        if job is None:
            return None
        response = DescribeAppResponse(app_id=app_id, state=_app_state(job), msg=job.reason)
        response.roles = [Role(name="trainer", image="", num_replicas=job.num_nodes)]
        run = _run_of(app_id)
        if run is not None:
            response.num_restarts = max(0, len(run.record.attempts) - 1)
            response.msg = run_status(run.layout, run.record).cause
            response.ui_url = run.layout.root.as_uri()
        return response

    def list(self, cfg: Mapping[str, Any] | None = None) -> list[ListAppResponse]:
        ids = [slurm_job(run.layout, run.record) for run in find_runs()[0]]
        jobs = [job for job_id in ids if job_id and (job := find_job(job_id))]
        return [ListAppResponse(job.id, _app_state(job)) for job in jobs]

    def _cancel_existing(self, app_id: str) -> None:
        """Ask the run to save and stop; asked again, or while it waits, cancel the job."""
        job, run = find_job(app_id), _run_of(app_id)
        asked_before = run is not None and run.layout.stop.exists()
        if run is not None:
            run.layout.stop.write_text(CANCEL_WORD, encoding="utf-8")
        if run is None or asked_before or (job and job.state == "PENDING"):
            scancel(app_id)

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


def _app_state(job: QueuedJob) -> AppState:
    return APP_STATES.get(job.state, AppState.FAILED if job.has_ended else AppState.RUNNING)


def _run_of(app_id: str) -> Run | None:
    """The run that this job is, among the known ones."""
    runs, _ = find_runs()
    return next((run for run in runs if slurm_job(run.layout, run.record) == app_id), None)


def create_scheduler(session_name: str, **kwargs: object) -> SlurmScheduler:
    """torchx's entry point."""
    return SlurmScheduler(session_name)
