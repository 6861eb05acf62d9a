"""One rank: `python -m titan_recipes.trainer job.toml --attempt N`, started by torchrun.

A rank's raw output goes to logs/rank-<r>.log, so that a crash of native code leaves its words
somewhere; rank 0 keeps the real stdout for lines that people read. However a rank ends, the first
one to know writes attempts/<n>/exit.json, because torchrun turns every failure into exit code 1.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from titan_recipes.config.job import Job, read_job
from titan_recipes.config.layout import RankExit, RunLayout, write_exit
from titan_recipes.errors import EXIT_DONE, EXIT_USER, TitanRecipesError
from titan_recipes.trainer.compiled import keep_compiled

if TYPE_CHECKING:
    from titan_recipes.trainer.train import Trainer

EXIT_RETRY = 1
PEER_GRACE_SECONDS = 5.0
"""How long a rank that lost a peer waits for the peer, or torchrun, to say what happened first."""

PR_SET_PDEATHSIG = 1

_PEER_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "nccl error",
    "gloo",
    "socket",
)


def main() -> int:
    """Run one rank; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m titan_recipes.trainer")
    parser.add_argument("job", type=Path, help="job.toml in the run directory")
    parser.add_argument("--attempt", type=int, default=1, help="number of this attempt")
    parser.add_argument(
        "--retry",
        action="store_true",
        help="no person began this attempt: go on from the newest checkpoint, not from load_step",
    )
    arguments = parser.parse_args()
    die_with_parent()
    layout, rank = RunLayout(arguments.job.resolve().parent), int(os.environ.get("RANK", "0"))
    console = redirect_output(layout, rank)
    trainer: Trainer | None = None
    try:
        job = read_job(arguments.job)
        if arguments.retry:
            job = replace(job, checkpoint=replace(job.checkpoint, load_step=-1))
        trainer = join(layout, job, console)
        trainer.train()
        leave()
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        step = trainer.step if trainer is not None else 0
        record_failure(layout, arguments.attempt, rank, error, step or -1)
        return error.exit_code if isinstance(error, TitanRecipesError) else EXIT_RETRY
    return EXIT_DONE


def die_with_parent() -> None:
    """Have Linux kill this rank when torchrun dies: an orphan would hold its GPU for ever."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def redirect_output(layout: RunLayout, rank: int) -> TextIO:
    """Send file descriptors 1 and 2 to this rank's log; returns what stdout was, for people.

    On rank 0 that stays `sys.stdout`.
    """
    layout.logs.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    console = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    log = os.open(layout.rank_log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if rank == 0:
        sys.stdout = console
    return console


def join(layout: RunLayout, job: Job, console: TextIO) -> "Trainer":
    """This rank among the job's others, ready to train.

    torch is imported here, after the output has a place to go.
    """
    if job.debug.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    keep_compiled(job)

    from titan_recipes.trainer.data.prepare import ensure_prepared
    from titan_recipes.trainer.metrics import RankEvents
    from titan_recipes.trainer.parallel.mesh import join_world
    from titan_recipes.trainer.train import Trainer

    # Before the ranks join: tokenizing may take longer than any collective waits. The first rank
    # here works and shows its progress, the others wait for it.
    with contextlib.redirect_stderr(console):
        prepared = ensure_prepared(job)
    world = join_world(job, layout.root)
    return Trainer(job, layout, world, RankEvents(layout, world.rank), prepared)


def leave() -> None:
    """Leave the other ranks, if there are any."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def record_failure(
    layout: RunLayout, attempt: int, rank: int, error: BaseException, step: int
) -> None:
    """Write exit.json, unless another rank's failure came first.

    The user's own mistake is told in its own words, without a traceback.
    """
    path = layout.exit(attempt)
    if is_peer_loss(error):
        deadline = time.monotonic() + PEER_GRACE_SECONDS
        while time.monotonic() < deadline and not path.exists():
            time.sleep(0.1)
    code = error.exit_code if isinstance(error, TitanRecipesError) else EXIT_RETRY
    text = "" if code == EXIT_USER else "".join(traceback.format_exception(error))
    # The disk may be what failed; the exit code says it then.
    with contextlib.suppress(OSError):
        print(text or f"error: {error}", file=sys.stderr, flush=True)
        write_exit(path, RankExit(code, rank, cause_of(error), text, step))


def cause_of(error: BaseException) -> str:
    """An error in one line; of a DataLoader worker's, the line that the worker raised."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if "Original Traceback" in str(error):
        return lines[-1].partition(": ")[2] or lines[-1]
    name = "" if isinstance(error, TitanRecipesError) else f"{type(error).__name__}: "
    return name + "; ".join(lines)


def is_peer_loss(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _PEER_WORDS)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # No interpreter teardown: a process group without its peers may hang in it, and after a success
    # gloo's threads may outlive what they need and abort the process (seen with torch 2.13).
    os._exit(code)
