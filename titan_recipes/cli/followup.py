"""`runs`, `status`, `logs`, `cancel`, `resume` and `report`: a run after it was submitted.

They work the same from any shell. RUN is a name or a run directory; default: the newest run.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from titan_recipes.cli.tables import json_option, print_json, print_table

if TYPE_CHECKING:
    from titan_recipes.launch.status import Status

SHOWN_FAILURES = 3

run_argument = click.argument("run", required=False)
outputs_option = click.option(
    "--outputs",
    type=click.Path(path_type=Path),
    help="Look for runs here only; default: everywhere that runs were launched into.",
)


@click.command(
    epilog="""\b
Examples:
  titan-recipes runs
  titan-recipes runs --outputs /shared/outputs --json"""
)
@outputs_option
@json_option
def runs(outputs: Path | None, as_json: bool) -> None:
    """List the runs, newest first."""
    from titan_recipes.launch.runs import find_runs
    from titan_recipes.launch.status import status_of

    found, broken = find_runs(outputs)
    for line in broken:
        click.echo(f"warning: {line}", err=True)
    statuses = [status_of(run) for run in found]
    if as_json:
        print_json([status.as_dict() for status in statuses])
        return
    header = ("RUN", "RECIPE", "PLAN", "SCHEDULER", "STATE", "STEP", "LOSS", "TOKENS/S")
    print_table((*header, "STARTED", "AGE"), [_row(status) for status in statuses])


def _row(status: "Status") -> tuple[str, ...]:
    from titan_recipes.launch.text import duration, local_time, number, progress

    return (
        status.run,
        status.recipe,
        status.plan,
        status.scheduler,
        status.state,
        progress(status.step, status.total_steps),
        number(status.loss),
        number(status.tokens_per_second),
        local_time(status.started),
        duration(status.age_seconds),
    )


@click.command(
    epilog="""\b
Examples:
  titan-recipes status
  titan-recipes status my_run --json"""
)
@run_argument
@outputs_option
@json_option
def status(run: str | None, outputs: Path | None, as_json: bool) -> None:
    """Say how a run stands: progress, newest checkpoint, why it stopped, what to type next."""
    from titan_recipes.launch.runs import find_run
    from titan_recipes.launch.status import status_of

    found = status_of(find_run(run, outputs))
    if as_json:
        print_json(found.as_dict())
        return
    for name, value in _facts(found):
        click.echo(f"{name:<12}{value}")


def _facts(status: "Status") -> list[tuple[str, str]]:
    """What is known, as name and value."""
    from titan_recipes.launch.status import loss_of
    from titan_recipes.launch.text import duration, gib, local_time, number, progress, short_path

    facts = [
        ("run", status.run),
        ("state", f"{status.state}: {status.cause}" if status.cause else status.state),
        *((("job", _job(status.job)),) if status.job else ()),
        ("recipe", f"{status.recipe}, plan {status.plan}, {status.scheduler}"),
        ("attempt", _attempt(status)),
        ("step", progress(status.step, status.total_steps)),
    ]
    if status.step is not None:
        facts.append(("loss", loss_of(status)))
        facts.append(("tokens/s", f"{number(status.tokens_per_second)} per device"))
        facts.append(("memory", gib(status.memory_gib)))
    if status.eta_seconds is not None:
        facts.append(("ETA", duration(status.eta_seconds)))
    facts.append(
        ("checkpoint", short_path(Path(status.checkpoint)) if status.checkpoint else "none")
    )
    facts.append(("launched", f"{local_time(status.created)}, {duration(status.age_seconds)} ago"))
    facts += [("failure", _failure(failure)) for failure in status.failures[-SHOWN_FAILURES:]]
    return [*facts, *(("next", command) for command in status.next)]


def _job(job: dict[str, Any]) -> str:
    """A job in SLURM's queue, in one line."""
    text = f"{job['id']} {job['state']}"
    if job["nodes"]:
        return f"{text} on {job['nodes']} ({job['num_nodes']}) for {job['elapsed']}"
    text += f": {job['reason']}" if job["reason"] else ""
    return f"{text}; starts about {job['start']}" if job["start"] else text


def _attempt(status: "Status") -> str:
    from titan_recipes.launch.attempts import NEVER_RETRIED

    text = str(status.attempt or "none yet")
    if status.failures_in_a_row:
        text += f"; {status.failures_in_a_row} failed in a row without a new checkpoint"
        code = status.failures[-1]["exit_code"]
        if code in NEVER_RETRIED:
            text += f", exit {code} is never retried"
        elif status.max_restarts is not None:
            text += f", {status.max_restarts} are retried"
    return text


def _failure(failure: dict[str, Any]) -> str:
    return f"attempt {failure['attempt']}: {failure['cause']} (exit {failure['exit_code']})"


@click.command(
    epilog="""\b
Examples:
  titan-recipes logs -f
  titan-recipes logs my_run --rank 1
  titan-recipes logs my_run --node 3
  titan-recipes logs my_run --grep 'loss|checkpoint'"""
)
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Follow the run to its end, across retries.")
@click.option("--rank", type=click.IntRange(min=0), help="One rank's raw output.")
@click.option("--node", type=click.IntRange(min=0), help="What one node says; default: node 0.")
@click.option("--grep", default="", metavar="REGEX", help="Only lines that match.")
@outputs_option
def logs(
    run: str | None,
    follow: bool,
    rank: int | None,
    node: int | None,
    grep: str,
    outputs: Path | None,
) -> None:
    """Print a run's log. Ctrl-C leaves the run alone."""
    if rank is not None and node is not None:
        raise click.UsageError("--rank and --node: give one of them")
    from titan_recipes.launch.kubernetes_mirror import node_mirrored
    from titan_recipes.launch.logs import log_lines
    from titan_recipes.launch.runs import find_run
    from titan_recipes.launch.state import run_status

    found = find_run(run, outputs)
    layout = found.layout

    def running() -> bool:
        return not run_status(layout).state.is_final

    still = running if follow else None
    with node_mirrored(layout, found.job(), rank=rank, node=node, follow=follow):
        for line in log_lines(layout, rank=rank, node=node, grep=grep, running=still):
            click.echo(line)


@click.command(
    epilog="""\b
Examples:
  titan-recipes cancel
  titan-recipes cancel my_run --now"""
)
@run_argument
@click.option("--now", is_flag=True, help="Kill it: no checkpoint is saved.")
@outputs_option
def cancel(run: str | None, now: bool, outputs: Path | None) -> None:
    """Stop a run with a checkpoint and wait until it has stopped."""
    from titan_recipes.launch import control
    from titan_recipes.launch.attempts import saves
    from titan_recipes.launch.follow import end_of
    from titan_recipes.launch.runs import find_run
    from titan_recipes.launch.state import RunState, run_status
    from titan_recipes.launch.status import status_of

    found = find_run(run, outputs)
    state = run_status(found.layout, found.record).state
    if state.is_final:
        click.echo(f"{found.name} is not running: it {end_of(status_of(found))}")
        return
    if now:
        ended = control.kill(found)
    else:
        job = found.job()
        waits = state is RunState.PENDING
        what = "stop" if waits or (job and not saves(job)) else "save a checkpoint and stop"
        click.echo(f"asked {found.name} to {what}; --now kills it instead")
        ended = control.cancel(found, waiting=_show_waiting)
    after = status_of(ended)
    click.echo(f"{found.name} {end_of(after)}")
    for command in after.next:
        click.echo(f"  {command}")


def _show_waiting(seconds: float) -> None:
    """A line that counts the seconds, on a terminal."""
    if sys.stderr.isatty():
        click.echo(f"\rwaiting for the checkpoint, {seconds:.0f} s\r", nl=False, err=True)


@click.command(
    epilog="""\b
Examples:
  titan-recipes resume
  titan-recipes resume my_run --set training.steps=400 --detach
  titan-recipes resume my_run --cluster lab"""
)
@run_argument
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change training.steps, checkpoint.* or metrics.* (TOML).",
)
@click.option(
    "--cluster",
    help="Under SLURM and on Kubernetes: another profile, or its own, edited (name or path).",
)
@click.option("--detach", is_flag=True, help="Return once it runs, instead of following it.")
@outputs_option
@click.pass_context
def resume(
    context: click.Context,
    run: str | None,
    overrides: tuple[str, ...],
    cluster: str | None,
    detach: bool,
    outputs: Path | None,
) -> None:
    """Continue a run that was stopped, failed or lost, from its newest checkpoint."""
    from titan_recipes.config.cluster import find_cluster
    from titan_recipes.launch import control
    from titan_recipes.launch.follow import follow
    from titan_recipes.launch.runs import find_run, open_run
    from titan_recipes.launch.state import run_status
    from titan_recipes.launch.status import next_commands

    found = find_run(run, outputs)
    profile = find_cluster(cluster) if cluster is not None else None
    offset = control.resume(found, overrides, profile)
    if not detach:
        context.exit(follow(open_run(found.layout.root), log_offset=offset))
    state = run_status(found.layout).state
    click.echo(f"{found.name} is {state.value} again")
    for command in next_commands(found.word, state, resumes=False):
        click.echo(f"  {command}")


@click.command(
    epilog="""\b
Examples:
  titan-recipes report
  titan-recipes report my_run -o my_run.html --open"""
)
@run_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write; default: report.html in the run directory.",
)
@click.option("--open", "open_page", is_flag=True, help="Open it in the browser.")
@outputs_option
def report(run: str | None, output: Path | None, open_page: bool, outputs: Path | None) -> None:
    """Write a run's report: one HTML page, complete in itself."""
    from titan_recipes.launch.report import write_report
    from titan_recipes.launch.runs import find_run
    from titan_recipes.launch.text import short_path

    path = write_report(find_run(run, outputs), output)
    click.echo(short_path(path.resolve()))
    if open_page:
        click.launch(path.resolve().as_uri())
