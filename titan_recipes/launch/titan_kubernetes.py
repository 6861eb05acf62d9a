# pyright: reportMissingTypeStubs=false
"""`titan_kubernetes`: a torchx scheduler that submits a run as a JobSet, TrainJob or Volcano Job.

torchx's own `kubernetes` knows Volcano alone, and no tolerations, secrets, queues or restarts.
Here the component is turned back into the job that it carries, what was given beside it put in its
place (`_job_of`), and rendered as job.yaml. Up to there neither a server nor a kubeconfig is
needed. The app id is `<namespace>:<object>`; what the run said is in a folder of this machine.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream
from torchx.specs import AppDef, AppDryRunInfo, Role, VolumeMount, macros, runopts

from titan_recipes.config.job import Job, decode, to_toml
from titan_recipes.config.kubernetes import Volume
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.errors import LaunchError
from titan_recipes.launch.kubernetes_control import cancel_object
from titan_recipes.launch.kubernetes_mirror import mirror_once, mirrored
from titan_recipes.launch.kubernetes_submission import (
    manifests,
    pods_image,
    submit,
    submitted,
)
from titan_recipes.launch.logs import log_lines
from titan_recipes.launch.record import (
    RUN_DIR_FLAG,
    new_record,
    remember_outputs,
    write_record,
)
from titan_recipes.launch.runs import Run, default_outputs, find_runs, open_run, real
from titan_recipes.launch.state import run_status
from titan_recipes.launch.titan_local import APP_STATES, check_new
from titan_recipes.render import PodSubmission, object_name
from titan_recipes.render.sbatch import asks_for_gpus

NAME = "titan_kubernetes"
OPTIONS = {
    "kind": "what the job becomes: jobset, trainjob or volcano",
    "namespace": "where its objects are made",
    "queue": "Kueue's LocalQueue, or Volcano's queue",
    "context": "context of the kubeconfig",
    "priority_class": "PriorityClass of the pods",
    "service_account": "service account of the pods",
}
"""Keys of the profile's [kubernetes] that torchx takes with -cfg; they win over the profile's."""
RECORD = "record"
"""-cfg key: the folder of this machine that holds what is known of runs."""
MIB_SUFFIX = "Mi"


@dataclass(frozen=True, slots=True)
class Request:
    """What `schedule` submits."""

    record: Path
    """The folder of this machine for the runs' records."""
    job: Job
    submission: PodSubmission
    files: Mapping[str, str]

    def __str__(self) -> str:
        """For a dry run: the manifests, in the order they are made."""
        return "---\n".join(self.files.values())


def _job_of(role: Role, cfg: Mapping[str, Any]) -> Job:
    """The job that a component carries, with what torchx was told beside it.

    Raises LaunchError for what a pod of ours has no place for.
    """
    job = decode(role.args[role.args.index("--job") + 1])
    own, wanted = job.site.kubernetes, role.resource
    gpus = job.plan.gpus_per_node if asks_for_gpus(job) else 0
    if wanted.gpu not in (-1, gpus):
        raise LaunchError(f"--gpu {wanted.gpu}: the job's plan has {gpus}; render another plan")
    if role.max_retries:
        cure = "set fault_tolerance.max_restarts in the recipe and render it again"
        raise LaunchError(f"--max_retries {role.max_retries}: the job itself restarts; {cure}")
    asked: dict[str, Any] = {key: value for key in OPTIONS if (value := cfg.get(key)) is not None}
    if (kind := asked.get("kind")) not in (None, "jobset", "trainjob", "volcano"):
        raise LaunchError(f"-cfg kind={kind}: use jobset, trainjob or volcano")
    resources = {**own.resources}
    resources |= {"cpu": wanted.cpu} if wanted.cpu > 0 else {}
    resources |= {"memory": f"{wanted.memMB}{MIB_SUFFIX}"} if wanted.memMB > 0 else {}
    volumes = {**own.volumes, **_volumes(role.mounts, own.volumes)}
    own = replace(own, **asked, resources=resources, volumes=volumes)
    container = replace(job.site.container, image=role.image or pods_image(job))
    site = replace(job.site, kubernetes=own, container=container)
    env = {name: value for name, value in role.env.items() if not name.startswith("TORCHX_")}
    return replace(job, site=site, env=env)  # without torchx's own words on the app


def _volumes(mounts: Sequence[object], known: Mapping[str, Volume]) -> dict[str, Volume]:
    """The claims that torchx was told to mount; those that the job mounts so are left out."""
    there = {(volume.claim_of(name), volume.path) for name, volume in known.items()}
    found: dict[str, Volume] = {}
    for mount in mounts:
        if not isinstance(mount, VolumeMount):
            raise LaunchError(f"--mounts: pods mount claims, type=volume; got {mount}")
        if (mount.src, mount.dst_path) not in there:
            name = f"mount-{len(found)}"
            found[name] = Volume(claim=mount.src, path=mount.dst_path, read_only=mount.read_only)
    return found


class KubernetesScheduler(Scheduler):  # pyright: ignore[reportMissingTypeArgument] - see titan_local
    """One gang of pods per run; see the module's docstring."""

    def __init__(self, session_name: str) -> None:
        super().__init__(NAME, session_name)

    def _run_opts(self) -> runopts:
        options = runopts()
        for name, words in OPTIONS.items():
            options.add(name, type_=str, help=words)
        words = "folder here for what is known of runs; default: $TITAN_RECIPES_OUTPUTS, ./outputs"
        options.add(RECORD, type_=str, help=words)
        return options

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[Request]:
        role = app.roles[0]
        if len(app.roles) > 1 or RUN_DIR_FLAG not in role.args or "--job" not in role.args:
            raise LaunchError(f"{NAME} runs only components that titan-recipes rendered")
        values = macros.Values(img_root="", app_id="", replica_id="", rank0_env="")
        job = _job_of(values.apply(role), cfg)
        run_dir = role.args[role.args.index(RUN_DIR_FLAG) + 1].replace("$$", "$")
        name = os.path.basename(run_dir)
        submission = PodSubmission(
            object_name=object_name(name),
            run_name=name,
            run_dir=run_dir,
            image=job.site.container.image,
        )
        record = real(Path(cfg.get(RECORD) or default_outputs()))
        request = Request(record, job, submission, manifests(job, submission))
        return AppDryRunInfo(request, str)

    def schedule(self, dryrun_info: AppDryRunInfo[Request]) -> str:
        request = dryrun_info.request
        layout = RunLayout(request.record / request.submission.run_name)
        check_new(layout)
        layout.root.mkdir(parents=True, exist_ok=True)
        if not layout.record.exists():  # torchx's own `run`
            record = new_record(
                request.job,
                name=layout.root.name,
                scheduler="kubernetes",
                handle="",
                command=("torchx", *sys.argv[1:]),
                image=request.submission.image,
            )
            replace_file(layout.job, to_toml(request.job))
            write_record(layout, record)
        where = submit(layout, request.job, request.submission, number=1)
        remember_outputs(request.record)
        return f"{where.namespace}:{where.name}"

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        run = _run_of(app_id)
        if run is None:
            return None
        status = run_status(run.layout, run.record)
        run = open_run(run.layout.root)
        job = run.job()
        response = DescribeAppResponse(app_id=app_id, state=APP_STATES[status.state])
        response.roles = [Role("trainer", image="", num_replicas=job.plan.nodes if job else 1)]
        response.num_restarts = max(0, len(run.record.attempts) - 1)
        response.msg = status.cause
        response.ui_url = run.layout.root.as_uri()
        return response

    def list(self, cfg: Mapping[str, Any] | None = None) -> list[ListAppResponse]:
        found = [(run, submitted(run.layout)) for run in find_runs()[0]]
        return [
            ListAppResponse(
                f"{where.namespace}:{where.name}",
                APP_STATES[run_status(run.layout, run.record).state],
            )
            for run, where in found
            if where is not None
        ]

    def _cancel_existing(self, app_id: str) -> None:
        """Delete the run's object: its pods are told to stop, and save."""
        run = _run_of(app_id)
        assert run is not None, "torchx calls this only for an app that exists"
        cancel_object(run)

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
        where = submitted(layout)
        assert where is not None, "it was found by what it was submitted as"

        def running() -> bool:
            return not run_status(layout).state.is_final

        mirror_once(layout, where, k)
        if not should_tail:
            yield from (f"{line}\n" for line in log_lines(layout, node=k, grep=regex or ""))
            return
        with mirrored(layout, k):
            lines = log_lines(layout, node=k, grep=regex or "", running=running)
            yield from (f"{line}\n" for line in lines)


def _run_of(app_id: str) -> Run | None:
    """The run whose newest submission this is, among the known ones."""
    for run in find_runs()[0]:
        where = submitted(run.layout)
        if where is not None and f"{where.namespace}:{where.name}" == app_id:
            return run
    return None


def create_scheduler(session_name: str, **kwargs: object) -> KubernetesScheduler:
    """torchx's entry point."""
    return KubernetesScheduler(session_name)
