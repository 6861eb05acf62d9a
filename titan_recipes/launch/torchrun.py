"""One torchrun on this node: its command, its environment, its end, and why it ended.

torchrun turns every worker's failure into exit code 1, prints a wall of text and, sent SIGTERM,
kills its workers after 30 s. So it is never signalled while ranks may still save: it gets a session
of its own, which a terminal's Ctrl-C does not reach, and its stderr goes to logs/torchrun.log. If
this process is killed, the kernel sends torchrun SIGTERM (PR_SET_PDEATHSIG), which ends the ranks;
if torchrun is killed, its ranks become children of this process (PR_SET_CHILD_SUBREAPER), which
ends them, so that two attempts never write into one run directory.
"""

import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from titan_recipes.config.layout import RankExit, RunLayout
from titan_recipes.errors import EXIT_DONE, EXIT_FAULT, EXIT_USER, LaunchError

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
# Below Linux's ephemeral ports: of those, a connection may take one before torchrun does.
LOWEST_PORT, NUM_PORTS = 15000, 15000
ORPHAN_SECONDS = 30.0  # for the kernel to end what was sent SIGKILL
CRASH_SIGNALS = ("SIGKILL", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE")
# What torch prints for each failed rank; the root cause comes last.
# Source: torch/distributed/elastic/multiprocessing/errors, _FAILURE_FORMAT_TEMPLATE (torch 2.13).
FAILED_RANK = re.compile(
    r"^  rank      : (\d+) \(local_rank: \d+\)\n  exitcode  : (-?\d+) \(pid: \d+\)", re.MULTILINE
)
SIGNALLED = re.compile(r"SignalException: Process \d+ got signal: (\d+)")
TORCHRUN_LOG_LINE = re.compile(r"^[WEF]\d{4} [\d:.]+ \d+ torch/distributed/", re.MULTILINE)
ATTEMPT_FLAG = "--attempt"
TRACEBACK = "Traceback (most recent call last):\n"


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks of all nodes meet: fixed beforehand, so that node order is kept."""

    nodes: int
    node_rank: int
    address: str
    port: int


def rendezvous(nodes: int, node_rank: int, address: str, run_id: str) -> Rendezvous:
    """One node takes a free port; several derive the same one from the run id.

    Raises LaunchError where every port tried is taken.
    """
    if nodes > 1:
        digest = int.from_bytes(sha256(run_id.encode()).digest()[:8], "big")
        return Rendezvous(nodes, node_rank, address, LOWEST_PORT + digest % NUM_PORTS)
    for port in random.sample(range(LOWEST_PORT, LOWEST_PORT + NUM_PORTS), 100):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return Rendezvous(1, 0, "127.0.0.1", port)
    raise LaunchError(f"no free port between {LOWEST_PORT} and {LOWEST_PORT + NUM_PORTS}")


def torchrun_command(where: Rendezvous, ranks: int, module: str, args: Sequence[str]) -> list[str]:
    """The command line of torchrun for one node with this many ranks."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--max-restarts=0",
        f"--nnodes={where.nodes}",
        f"--nproc-per-node={ranks}",
        f"--node-rank={where.node_rank}",
        f"--master-addr={where.address}",
        f"--master-port={where.port}",
        "-m",
        module,
        *args,
    ]


def torchrun_env(job_env: Mapping[str, str], ranks: int) -> dict[str, str]:
    """This process's environment under the job's, without settings meant for another torchrun."""
    theirs = ("PET_", "TORCHELASTIC_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(theirs)}
    env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    env["PYTHONSAFEPATH"] = "1"  # a folder named `datasets` where the user stands is not a package
    return env | dict(job_env)


class Torchrun:
    """A running torchrun. `write` gets every line it prints, from a thread."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        write: Callable[[bytes], None],
    ) -> None:
        self._log = log
        self._write = write
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        parent = os.getpid()

        def die_with_parent() -> None:
            self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        with log.open("ab") as errors:
            self._offset = errors.tell()
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._pump = threading.Thread(target=self._copy_output, daemon=True)
        self._pump.start()

    def _copy_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._write(line)

    def wait(self, timeout_seconds: float) -> int | None:
        """torchrun's exit code, once it and all its ranks are gone; None at the timeout."""
        try:
            code = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        self.kill()  # ranks that outlived it
        self._pump.join()
        return code

    def kill(self) -> None:
        """End torchrun and every process below it at once, and wait until they are gone."""
        while left := descendants(os.getpid()):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            self._reap_orphans()
            time.sleep(0.01)
        self._process.wait()

    def _reap_orphans(self) -> None:
        """Take leave of ranks that torchrun left behind; torchrun itself is Popen's to reap."""
        for pid in descendants(os.getpid(), direct=True):
            if pid != self._process.pid:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def errors(self) -> str:
        """What it wrote to its stderr: its own report, and ranks that died before logging."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode("utf-8", errors="replace")


def descendants(root: int, *, direct: bool = False) -> list[int]:
    """Processes below `root`, zombies included, parents first; with `direct`, only its children."""
    children = dict[int, list[int]]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(root, []))
    if not direct:
        for pid in found:  # grows while it is walked
            found += children.get(pid, [])
    return found


def processes_with(*words: str) -> list[int]:
    """Processes on this host that have all of these among their arguments."""
    wanted = {os.fsencode(word) for word in words}
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if wanted <= set((entry / "cmdline").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
    return found


def orphans(layout: RunLayout) -> list[int]:
    """torchrun and ranks of this run on this host, by their arguments: job.toml and --attempt."""
    return processes_with(str(layout.job), ATTEMPT_FLAG)


def end_orphans(layout: RunLayout) -> None:
    """End what a dead entry point left: torchrun gives its ranks 30 s, in which they still save.

    Raises LaunchError, naming the process, for one that is another user's or does not end.
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    while left := orphans(layout):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except PermissionError as error:
                why = f"process {pid} of another user still trains here"
                raise LaunchError(f"{layout.root}: {why}; ask its owner to end it") from error
        if time.monotonic() > deadline:
            why = f"process {left[0]} does not end {ORPHAN_SECONDS:.0f} s after SIGKILL"
            cure = "its device or file system hangs; see to that first"
            raise LaunchError(f"{layout.root}: {why}; {cure}")
        time.sleep(0.01)


def explain(code: int, report: str, written: RankExit | None) -> RankExit:
    """Why torchrun ended with a non-zero `code`, first cause first.

    report: what it wrote to stderr; written: what the first rank that could left in exit.json. A
    crash that only the parent process can see, such as SIGKILL, comes before what other ranks
    wrote: they only lost their connection to it. A rank that says it was the user's error, or a
    fault, is believed.
    """
    if written and written.code == EXIT_DONE:  # a rank that died after the last step
        written = None
    failed = [(int(rank), int(status)) for rank, status in FAILED_RANK.findall(report)]
    crashed = [(rank, -status) for rank, status in failed if signal_name(-status) in CRASH_SIGNALS]
    if crashed and not (written and written.code in (EXIT_USER, EXIT_FAULT)):
        rank, number = crashed[-1]
        if not (written and written.rank == rank):
            return RankExit(1, rank, death_by(rank, number))
    if written:
        return written
    if not failed and (signalled := SIGNALLED.search(report)):  # SLURM signals every process
        return RankExit(1, -1, f"ended by {signal_name(int(signalled[1]))} before it had saved")
    if not failed:
        return RankExit(1, -1, f"torchrun ended with {code}: {last_line(report)}")
    rank, status = failed[-1]
    if status < 0:
        return RankExit(1, rank, death_by(rank, -status))
    said, traceback = rank_words(report)
    return RankExit(status, rank, f"rank {rank} ended with {status}{said}", traceback)


def death_by(rank: int, number: int) -> str:
    """One line on a rank that a signal ended."""
    name = signal_name(number)
    hints = {
        "SIGKILL": " (out of memory?)",
        "SIGSEGV": " (a crash in native code)",
        "SIGABRT": " (a collective timed out?)",  # so NCCL's watchdog ends a rank
    }
    hint = hints.get(name, "")
    return f"rank {rank} was killed by {name}{hint}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def rank_words(report: str) -> tuple[str, str]:
    """(": last line", traceback) that a rank wrote before it had a log of its own."""
    own = TORCHRUN_LOG_LINE.split(report, maxsplit=1)[0]
    start = own.rfind(TRACEBACK)
    line = last_line(own)
    return (f": {line}" if line else ""), (own[start:].rstrip() if start >= 0 else "")


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
