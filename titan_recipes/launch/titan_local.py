# pyright: reportMissingTypeStubs=false
"""`titan_local`: a torchx scheduler for this machine whose runs any shell can follow and end.

torchx's own `local_cwd` keeps its runs in memory and ends them with itself. Here the node entry
point is started detached (a session of its own, nothing on stdin, its output in logs/node-0.log),
and everything else is read from the run directory. The app id is the run's name and a hash of its
directory, so any process finds the directory again among the folders that held runs.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from torchx.schedulers.api import (
    DescribeAppResponse,
    ListAppResponse,
    Scheduler,
    Stream,
    filter_regex,
)
from torchx.specs import AppDef, AppDryRunInfo, AppState, Role, is_terminal, macros, runopts

from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import LaunchError
from titan_recipes.launch.record import (
    RUN_DIR_FLAG,
    is_alive,
    known_outputs,
    read_record,
    remember_outputs,
)
from titan_recipes.launch.runs import find_runs
from titan_recipes.launch.state import RunState, run_status

NAME = "titan_local"
RANK0_ENV = "TITAN_RECIPES_MASTER_ADDR"
HASH_DIGITS = 8
POLL_SECONDS = 0.2
APP_STATES = {
    RunState.PENDING: AppState.PENDING,
    RunState.RUNNING: AppState.RUNNING,
    RunState.SUCCEEDED: AppState.SUCCEEDED,
    RunState.STOPPED: AppState.CANCELLED,
    RunState.FAILED: AppState.FAILED,
}
_started: list[subprocess.Popen[bytes]] = []  # kept, so that none is reaped while it still runs


@dataclass(frozen=True, slots=True)
class Request:
    """What `schedule` starts."""

    app_id: str
    run_dir: Path
    command: tuple[str, ...]
    env: Mapping[str, str]

    def __str__(self) -> str:
        """For a dry run: the command, the encoded job left out."""
        words = [word if len(word) < 200 else f"{word[:20]}..." for word in self.command]
        return "\n".join([f"run directory  {self.run_dir}", f"command        {' '.join(words)}"])


def app_id(run_dir: Path) -> str:
    """The app id of a run directory: `<name>-<hash of its path>`."""
    run_dir = run_dir.resolve()
    return f"{run_dir.name}-{sha256(str(run_dir).encode()).hexdigest()[:HASH_DIGITS]}"


def find_run_dir(app: str) -> Path | None:
    """The run directory of an app id, in a folder known to hold runs; None where there is none."""
    name = app[: -HASH_DIGITS - 1]
    found = [outputs / name for outputs in known_outputs() if name]
    return next((path for path in found if path.is_dir() and app_id(path) == app), None)


def start_node(
    layout: RunLayout, command: Sequence[str], env: Mapping[str, str], cwd: str | None = None
) -> int:
    """Start a node entry point that outlives this process; its process id."""
    layout.logs.mkdir(parents=True, exist_ok=True)
    with layout.node_log(0).open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _started.append(process)
    return process.pid


def resume_node(layout: RunLayout) -> int:
    """Start the node entry point of an ended run again, where it was launched; its process id.

    The job is the directory's job.toml. Failures before this no longer count.
    """
    cwd = read_record(layout).cwd
    command = [sys.executable, "-P", "-m", "titan_recipes.launch.node"]
    command += [RUN_DIR_FLAG, str(layout.root), "--run-id", app_id(layout.root), "--resumed"]
    return start_node(layout, command, {}, cwd if Path(cwd).is_dir() else None)


def _only_role(app: AppDef) -> Role:
    """The component's role. Raises LaunchError where it is not one that runs here."""
    role = app.roles[0]
    if len(app.roles) > 1 or RUN_DIR_FLAG not in role.args:
        raise LaunchError(f"{NAME} runs only components that titan-recipes rendered")
    if role.num_replicas > 1:
        cure = "choose a plan with nodes = 1, or another scheduler"
        raise LaunchError(
            f"{app.name}: plan.nodes = {role.num_replicas}, but {NAME} has one; {cure}"
        )
    return role


def check_new(layout: RunLayout) -> None:
    """Raises LaunchError for a run that began before: starting it again is `resume`'s."""
    if layout.record.exists() and read_record(layout).attempts:
        word = shlex.quote(str(layout.root))
        cure = f"give another --name, or go on with it: titan-recipes resume {word}"
        raise LaunchError(f"{layout.root}: exists already; {cure}")


class LocalScheduler(Scheduler):  # pyright: ignore[reportMissingTypeArgument] - see below
    """One node on this machine, detached; see the module's docstring.

    The base class takes one type parameter in torchx 0.7, others later: none fits both.
    """

    def __init__(self, session_name: str) -> None:
        super().__init__(NAME, session_name)

    def _run_opts(self) -> runopts:
        return runopts()

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[Request]:
        role = _only_role(app)
        run_dir = Path(role.args[role.args.index(RUN_DIR_FLAG) + 1].replace("$$", "$")).resolve()
        values = macros.Values(
            img_root="", app_id=app_id(run_dir), replica_id="0", rank0_env=RANK0_ENV
        )
        role = values.apply(role)
        request = Request(app_id(run_dir), run_dir, (role.entrypoint, *role.args), {**role.env})
        return AppDryRunInfo(request, str)

    def schedule(self, dryrun_info: AppDryRunInfo[Request]) -> str:
        request = dryrun_info.request
        check_new(RunLayout(request.run_dir))
        start_node(RunLayout(request.run_dir), request.command, request.env)
        remember_outputs(request.run_dir.parent)
        return request.app_id

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        run_dir = find_run_dir(app_id)
        if run_dir is None:
            return None
        layout = RunLayout(run_dir)
        response = DescribeAppResponse(app_id=app_id, state=AppState.PENDING)
        response.roles = [Role(name="trainer", image="")]
        if layout.record.exists():  # stock torchx leaves it to the node entry point to write one
            record = read_record(layout)
            status = run_status(layout, record)
            response.state = APP_STATES[status.state]
            response.num_restarts = max(0, len(record.attempts) - 1)
            response.msg = status.cause
        response.ui_url = run_dir.as_uri()
        return response

    def list(self, cfg: Mapping[str, Any] | None = None) -> list[ListAppResponse]:
        runs, _ = find_runs()
        ours = [run for run in runs if run.record.handle.startswith(f"{NAME}://")]
        return [
            ListAppResponse(app_id(run.layout.root), APP_STATES[run_status(run.layout).state])
            for run in ours
        ]

    def _cancel_existing(self, app_id: str) -> None:
        """Ask the run to save and stop; asked again, signal its node entry point too."""
        run_dir = find_run_dir(app_id)
        assert run_dir is not None, "torchx calls this only for an app that exists"
        layout = RunLayout(run_dir)
        asked_before = layout.stop.exists()
        try:
            layout.stop.touch()
            attempts = read_record(layout).attempts if layout.record.exists() else ()
            if asked_before and attempts and is_alive(attempts[-1]):
                os.kill(attempts[-1].pid, signal.SIGTERM)
        except PermissionError as error:
            cure = f"ask the owner of {run_dir}"
            raise LaunchError(
                f"{run_dir.name}: not yours to stop: {error.strerror}; {cure}"
            ) from error

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
        run_dir = find_run_dir(app_id)
        if run_dir is None:
            raise LaunchError(f"{app_id}: no such run")
        lines = self._lines(app_id, RunLayout(run_dir).node_log(k), should_tail)
        return filter_regex(regex, lines) if regex else lines

    def _lines(self, app_id: str, log: Path, should_tail: bool) -> Iterator[str]:
        """The lines of a log, as they come, until the run has ended."""
        with log.open(encoding="utf-8", errors="replace") as file:
            torn = ""
            while True:
                described = self.describe(app_id)
                ended = described is None or is_terminal(described.state)
                for chunk in iter(file.readline, ""):
                    torn += chunk
                    if torn.endswith("\n"):
                        yield torn
                        torn = ""
                if ended or not should_tail:
                    break
                time.sleep(POLL_SECONDS)
            if torn:
                yield torn


def create_scheduler(session_name: str, **kwargs: object) -> LocalScheduler:
    """torchx's entry point."""
    return LocalScheduler(session_name)
