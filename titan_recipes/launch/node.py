"""The node entry point: `python -m titan_recipes.launch.node`, the same under every scheduler.

It writes job.toml where the job sees it, starts torchrun with the trainer, waits, and exits with
the run's own code: 0 done or asked to stop, 2 the user's error, 3 a fault that needs a person (both
never retried), 1 anything else. A failed one-node run is started again here, as
`titan_recipes.launch.attempts` says; with more nodes the scheduler restarts all of them.

Stopping: SIGTERM, SIGINT or `cancel` make the stop file appear, which every rank looks at; the
trainer saves and exits 0, and leaves REQUEUE where it has more to do. Signals are not forwarded.
A second signal, or fault_tolerance.grace_seconds without an end, kills the ranks.

Node 0 is the only writer of run.json while it lives. Imports no torch.
"""

import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from titan_recipes.config.job import Job
from titan_recipes.config.layout import RankExit, RunLayout, read_exit, write_exit
from titan_recipes.errors import EXIT_DONE, LaunchError, TitanRecipesError
from titan_recipes.launch.attempts import (
    EXIT_FAILED,
    MOST_STOPS,
    NEVER_RETRIED,
    check_kept,
    ending,
    exit_code,
    is_retried,
    measured,
    newest_checkpoint,
    saves,
    stops_in_a_row,
    verdict,
)
from titan_recipes.launch.changes import adopt_job
from titan_recipes.launch.claim import CLOCK_SKEW, claim
from titan_recipes.launch.node_log import NodeLog
from titan_recipes.launch.node_options import Options, parse_options
from titan_recipes.launch.pod import EXIT_STOPPED, Pod, pod_exit_code
from titan_recipes.launch.preflight import preflight
from titan_recipes.launch.record import (
    Attempt,
    RunRecord,
    new_record,
    now,
    process_start,
    read_record,
    remember_outputs,
    write_record,
)
from titan_recipes.launch.rows import read_rows
from titan_recipes.launch.stop import KILL_WORD, KILLED, StopRequest, moment, stop_word
from titan_recipes.launch.torchrun import (
    ATTEMPT_FLAG,
    Torchrun,
    end_orphans,
    explain,
    rendezvous,
    torchrun_command,
    torchrun_env,
)
from titan_recipes.render import SESSION

POLL_SECONDS = 0.1
JOIN_TIMEOUT = timedelta(minutes=5)
PEER_SECONDS = 30.0  # for ranks to find out that those of another node are gone
AGAIN = "again"
"""What REQUEUE holds where all nodes are to start again in the allocation they have."""
STOPPED = RankExit(EXIT_DONE, -1, "asked to stop before it started")


class Node:
    """This node's part of the run."""

    def __init__(self, options: Options, layout: RunLayout, job: Job, stop: StopRequest) -> None:
        self._options = options
        self._layout = layout
        self._job = job
        self._checkpoints = layout.root / job.checkpoint.folder
        self._log = NodeLog(layout.node_log(options.node_rank))
        self._stop = stop
        ranks = job.plan.gpus_per_node
        self._pod = Pod(options, layout, ranks, self._log) if options.in_pod else None
        self._resumed = options.resumed  # and not started again since, by a scheduler
        self._excludes = False  # the preflight found nodes that the next start does without

    def run(self) -> int:
        """Train, again after failures, until the run is over for this node; its exit code."""
        code = self._follow_node_0() if self._options.node_rank else self._lead()
        if not self._pod:
            return code
        last, stops = next(reversed(self._attempts()), None), self._stop.is_made
        return pod_exit_code(code, last, stops=stops and not self._stop.is_persons)

    def _lead(self) -> int:
        record = self._open_record()
        if found := self._verdict(record.attempts):
            code, words = found
            self._log.say(words)
            return code
        check_kept(self._layout.root, record.attempts, self._checkpoints)
        if self._pod and not self._pod.assemble(lambda: self._stop.is_made):
            return EXIT_STOPPED if self._stop.is_made else EXIT_FAILED
        resumed = self._resumed
        while True:
            attempt = self._begin(record, resumed)
            record = replace(record, handle=_handle(record)).with_attempt(attempt)
            self._write(record)
            why = self._train(attempt)
            if self._is_superseded(attempt):
                self._log.say(f"attempt {attempt.number} left: another node has begun the next one")
                return EXIT_FAILED
            record = self._end(record, why)
            self._write(record)
            attempt, resumed = record.attempts[-1], False
            for line in ending(record.attempts, why, nodes=self._options.nodes):
                self._log.say(line)
            if attempt.final:
                return exit_code(record.attempts)
            if self._options.nodes > 1 or attempt.outcome == "stopped" or self._excludes:
                return attempt.exit_code

    def _open_record(self) -> RunRecord:
        """The record, made where stock torchx started this run; an attempt that was lost is closed.

        Raises LaunchError where another process is at it.
        """
        if not self._layout.record.exists():
            scheduler = os.environ.get("TORCHX_JOB_ID", "").partition("://")[0]
            record = new_record(
                self._job,
                name=self._layout.root.name,
                scheduler=scheduler or "local",  # started by hand
                handle="",
                command=(),
            )
            remember_outputs(self._layout.root.parent)
        else:
            record = read_record(self._layout)
            if self._pod and not self._resumed:
                self._pod.check_ours(record, _handle(record))
        self._resumed = self._resumed and not self._started_again(record)
        last = record.attempts[-1] if record.attempts else None
        here = last and last.host == socket.gethostname()
        if last and here and process_start(last.pid) == last.pid_start:
            raise LaunchError(f"{self._layout.root}: runs already, as process {last.pid}")
        end_orphans(self._layout)
        if last and last.outcome == "running":
            cause = f"lost: process {last.pid} on {last.host} went without a word"
            if self._layout.stop.exists():  # preempted: the nodes went before all was saved
                cause = "asked to stop, and ended before it had saved"
            record = self._end(record, RankExit(EXIT_FAILED, -1, cause))
            self._layout.requeue.unlink(missing_ok=True)  # this is the next start already
            self._write(record)
        before = record.attempts or self._pod  # pods may have been stopped before their first one
        if self._resumed or (before and not self._stop.is_persons):
            self._layout.stop.unlink(missing_ok=True)  # it was asked for before: done with
        self._stop.arm()
        return record

    def _attempts(self) -> tuple[Attempt, ...]:
        return read_record(self._layout).attempts if self._layout.record.exists() else ()

    def _write(self, record: RunRecord) -> None:
        write_record(self._layout, record)
        if self._pod:
            self._pod.tell(record.attempts[-1])

    def _started_again(self, record: RunRecord) -> bool:
        # By Kubernetes, after `resume` had submitted it: its flags stay the same.
        return self._pod is not None and record.handle == _handle(record) != ""

    def _verdict(self, attempts: Sequence[Attempt]) -> tuple[int, str] | None:
        if self._resumed:
            return None
        max_restarts = self._job.fault_tolerance.max_restarts
        return verdict(attempts, max_restarts, by_person=self._stop.is_persons)

    def _begin(self, record: RunRecord, resumed: bool) -> Attempt:
        """Claim the next attempt. Raises LaunchError where another process just did."""
        number = claim(self._layout, record.attempts[-1].number + 1 if record.attempts else 1)
        self._layout.requeue.unlink(missing_ok=True)
        step = newest_checkpoint(self._checkpoints)
        if resumed and record.attempts and not step:
            self._log.say("no checkpoint: starting at step 0")
        return Attempt(
            number=number,
            started=now(),
            host=socket.gethostname(),
            pid=os.getpid(),
            pid_start=process_start(os.getpid()) or 0,
            step_from=step,
            step_to=step,
            resumed=resumed,
        )

    def _follow_node_0(self) -> int:
        """Take part in the attempt that node 0 begins, if it begins one; the exit code.

        Raises LaunchError where node 0 neither begins one nor ends.
        """
        before = self._attempts()
        # A stop asked for before belongs to the past: node 0 takes it away.
        old = self._stop.moment if before or self._options.resumed or self._pod else None
        self._stop.arm()
        if self._pod:
            if before:
                self._resumed = self._resumed and not self._started_again(read_record(self._layout))
            if before and before[-1].final and self._verdict(before):
                return exit_code(before)
            if not self._pod.assemble(lambda: self._stop.moment not in (None, old)):
                return EXIT_STOPPED if self._stop.is_made else EXIT_FAILED
        started = datetime.fromisoformat(now())
        deadline = time.monotonic() + JOIN_TIMEOUT.total_seconds()
        while time.monotonic() < deadline:
            if attempts := self._attempts():
                last = attempts[-1]
                recent = datetime.fromisoformat(last.started) > started - CLOCK_SKEW
                if last.outcome == "running":
                    if recent:
                        why = self._train(last)
                        done = why is None or self._is_stop(why, last)
                        return EXIT_DONE if done or why is None else why.code
                elif (
                    len(attempts) > len(before)
                    or (recent and self._starts_again())  # it failed before this node came
                    or (last.final and self._verdict(attempts))
                ):
                    return exit_code(attempts)
            if self._stop.moment not in (None, old):
                return EXIT_DONE
            time.sleep(POLL_SECONDS)
        raise LaunchError(f"{self._layout.record}: node 0 began no attempt within {JOIN_TIMEOUT}")

    def _starts_again(self) -> bool:
        """Whether node 0's attempt of this start has failed; the script took an older one's away.

        It is read: NFS looks again at a file that is opened, not at one whose name it knows. In a
        pod there is no such script, and no attempt either before this node is there.
        """
        if self._pod:
            return False
        with suppress(OSError):
            return self._layout.requeue.read_text(encoding="utf-8") == AGAIN
        return False

    def _train(self, attempt: Attempt) -> RankExit | None:
        """One torchrun, to its end; None where it succeeded, else why it did not."""
        if why := self._preflight(attempt):
            return why
        if self._stop.is_made:
            return STOPPED
        options, ranks = self._options, self._job.plan.gpus_per_node
        retry = ["--retry"] if attempt.number > 1 and not attempt.resumed else []
        meet = rendezvous(options.nodes, options.node_rank, options.master_addr, options.run_id)
        if self._pod:
            self._pod.begin_echo()
        torchrun = Torchrun(
            torchrun_command(
                meet,
                ranks,
                options.trainer_module,
                [str(self._layout.job), ATTEMPT_FLAG, str(attempt.number), *retry],
            ),
            torchrun_env(self._job.env, ranks),
            self._layout.logs / "torchrun.log",
            self._log.write,
        )
        killed, end = "", self._layout.exit(attempt.number)
        grace = self._job.fault_tolerance.grace_seconds
        while (code := torchrun.wait(POLL_SECONDS)) is None:
            if (killed := self._stop.overdue(grace)) or self._is_superseded(attempt):
                torchrun.kill()
            elif options.nodes > 1 and _age(end) > PEER_SECONDS:
                torchrun.kill()  # its ranks wait for some that are gone
            if self._pod:
                self._pod.echo()
        if self._pod:
            self._pod.echo(ended=True)
        if code == EXIT_DONE or self._is_superseded(attempt):
            return None
        if killed or stop_word(self._layout) == KILL_WORD:  # scancel signals torchrun too
            first = read_exit(end) if self._pod else None  # why Kubernetes stopped this one too
            return first or RankExit(EXIT_FAILED, -1, killed or KILLED)
        why = explain(code, torchrun.errors(), read_exit(end))
        write_exit(end, why)  # other nodes learn from it that this one failed, and how
        return why

    def _is_superseded(self, attempt: Attempt) -> bool:
        """Whether the scheduler took this node for dead and started the run elsewhere.

        It may only have been cut off from the scheduler: two attempts must not write into one
        directory.
        """
        return self._layout.attempt(attempt.number + 1).exists()

    def _preflight(self, attempt: Attempt) -> RankExit | None:
        """Check the nodes, where the cluster profile asks for it; what keeps them from training."""
        if not self._job.site.preflight.enable or self._stop.is_made:
            return None
        where = self._options
        try:
            why = preflight(
                self._layout,
                self._job,
                where.nodes,
                where.node_rank,
                where.master_addr,
                where.run_id,
                attempt.number,
                self._log.say,
            )
        except LaunchError as error:  # its port is taken: the next attempt takes another
            return RankExit(EXIT_FAILED, -1, str(error))
        self._excludes = (
            why is not None and why.code == EXIT_FAILED and self._layout.exclude.exists()
        )
        return why

    def _is_stop(self, why: RankExit, attempt: Attempt) -> bool:
        """Whether an attempt that ended so was stopped; what needs a person is no stop.

        Nor is what failed before: Kubernetes stops the other pods where one has failed.
        """
        stopped, failed = self._stop.moment, moment(self._layout.exit(attempt.number))
        before = self._pod and stopped and failed and failed < stopped
        return stopped is not None and not before and why.code not in NEVER_RETRIED

    def _end(self, record: RunRecord, why: RankExit | None) -> RunRecord:
        """The record with its last attempt closed."""
        last = replace(
            record.attempts[-1], ended=now(), step_to=newest_checkpoint(self._checkpoints)
        )
        rows = [row for row in read_rows(self._layout.metrics) if row["step"] > last.step_from]
        if why is None and not self._layout.requeue.exists():
            self._layout.stop.unlink(missing_ok=True)  # came too late
            last = replace(last, outcome="done", exit_code=EXIT_DONE, final=True)
        elif why is None or self._is_stop(why, last):
            cause = why.cause if why else "asked to stop"
            last = replace(last, outcome="stopped", exit_code=EXIT_DONE)
            in_vain = stops_in_a_row((*record.attempts[:-1], last)) >= MOST_STOPS
            if not saves(self._job):  # started again it would train from step 0 for ever
                cause += "; nothing was saved: its checkpoints are off"
            elif in_vain:
                cause += f"; {MOST_STOPS} times in a row before its first step: it needs more time"
            goes_on = saves(self._job) and not in_vain and not self._stop.is_persons
            if goes_on:
                self._layout.requeue.touch()
            else:
                self._layout.requeue.unlink(missing_ok=True)
            # SLURM's script requeues the job, Kubernetes makes new pods: it goes on by itself.
            final = not (goes_on and (self._pod or record.handle.startswith(SESSION)))
            last = replace(last, cause=cause, final=final)
        else:
            cause = why.cause
            if why.step < 0 and rows:
                cause += f", after step {rows[-1]['step']}"
            last = replace(last, outcome="failed", exit_code=why.code, cause=cause, rank=why.rank)
            max_restarts = self._job.fault_tolerance.max_restarts
            last = replace(last, final=not is_retried((*record.attempts[:-1], last), max_restarts))
            if not last.final and self._excludes:
                self._layout.requeue.touch()
            elif not last.final and self._options.nodes > 1:
                self._layout.requeue.write_text(AGAIN, encoding="utf-8")
        return replace(record.with_attempt(last), measured=measured(rows) or record.measured)


def _handle(record: RunRecord) -> str:
    """torchx's handle of what runs this; `resume` submits another job than the record's."""
    return os.environ.get("TORCHX_JOB_ID", record.handle)


def _age(file: Path) -> float:
    """Seconds since a file was written; 0 where there is none."""
    return time.time() - written / 1e9 if (written := moment(file)) else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run this node's part; the exit code of the run contract."""
    options = parse_options(argv)
    layout = RunLayout(options.run_dir)
    try:
        stop = StopRequest(layout)
        replaces = options.in_pod and options.resumed
        job = adopt_job(layout, options.job, replaces=replaces)
        return Node(options, layout, job, stop).run()
    except TitanRecipesError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
