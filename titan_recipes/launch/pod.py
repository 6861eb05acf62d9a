"""What a node does more in a Kubernetes pod.

The launcher sees no run directory there, only what a pod prints: each change of an attempt goes
out as one line for programs, and the raw output of the node's ranks with their number before it.
Pods come when their image is pulled, which may take an hour on a new machine: all wait for all
before an attempt begins. And Kubernetes has no word for a run that stopped and has more to do: its
pods end with EXIT_STOPPED, for which they are started again, and a run that is given up ends with
an exit code for which they are not.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from titan_recipes.config.layout import ATTEMPT_MARK, RunLayout
from titan_recipes.errors import EXIT_DONE, EXIT_FAULT, LaunchError
from titan_recipes.launch.attempts import EXIT_FAILED
from titan_recipes.launch.logs import Tail
from titan_recipes.launch.meeting import Message, gather, join
from titan_recipes.launch.node_log import NodeLog
from titan_recipes.launch.node_options import Options
from titan_recipes.launch.record import Attempt, RunRecord
from titan_recipes.launch.torchrun import Rendezvous, rendezvous

EXIT_STOPPED = 143
"""128 + SIGTERM: the run was asked to stop, has saved, and has more to do."""
ASSEMBLE_SECONDS = 3600.0
POLL_SECONDS = 0.2
BEGIN: Message = {"begin": True}
WAITING = "waiting for the run's other pods"


class Pod:
    """This node, as a pod; ranks: how many it has."""

    def __init__(self, options: Options, layout: RunLayout, ranks: int, log: NodeLog) -> None:
        self._options, self._layout, self._log = options, layout, log
        self._ranks = range(options.node_rank * ranks, (options.node_rank + 1) * ranks)
        self._tails = dict[int, Tail]()

    def check_ours(self, record: RunRecord, handle: str) -> None:
        """Raises LaunchError where the volume, which no launcher sees, has another run of this
        name: it was not resumed, and would go on all the same."""
        if record.attempts and record.handle != handle:
            got = f"{self._layout.root}: holds a run of {record.handle or 'another launch'}"
            raise LaunchError(f"{got}; give the run another --name, or resume that one")

    def tell(self, attempt: Attempt) -> None:
        """Tell the launcher how an attempt stands."""
        self._log.tell(ATTEMPT_MARK + json.dumps(asdict(attempt)))

    def begin_echo(self) -> None:
        """From here on the ranks' raw output is printed too."""
        for rank in self._ranks:
            log = self._layout.rank_log(rank)
            self._tails[rank] = Tail(log, offset=log.stat().st_size if log.exists() else 0)

    def echo(self, *, ended: bool = False) -> None:
        """Print what the ranks wrote since the last call."""
        for rank, tail in self._tails.items():
            for line in tail.rest() if ended else tail.lines():
                self._log.tell(f"[rank {rank}] {line}")

    def assemble(self, stopped: Callable[[], bool]) -> bool:
        """Wait until all pods of the run are there; False where it is to stop, or some are missing,
        which it says."""
        where, deadline = self._options, time.monotonic() + ASSEMBLE_SECONDS
        if where.nodes == 1:
            return True
        meeting = f"{where.run_id}.assembly"
        meet = rendezvous(where.nodes, where.node_rank, where.master_addr, meeting)
        if where.node_rank > 0:
            hello = {"meeting": meeting, "rank": where.node_rank}
            return self._await_others(meet, hello, deadline, stopped)
        self._log.say(WAITING)
        others = set(range(1, where.nodes))
        try:
            came = gather(meet.port, others, meeting, deadline, stopped)
        except OSError as error:  # with the host's network, where others take ports too
            self._log.say(f"port {meet.port}: {error.strerror}")
            return False
        missing = sorted(others - came.keys())
        for peer, _ in came.values():
            with suppress(OSError):  # it went meanwhile: whoever runs the pods knows
                if not missing:
                    peer.send(BEGIN)
            peer.close()
        if missing and not stopped():
            names = ", ".join(map(str, missing))
            late = f"did not come within {ASSEMBLE_SECONDS:.0f} s"
            self._log.say(f"pods {names} {late}; see: kubectl get pods, kubectl describe pod")
        return not missing

    def _await_others(
        self, meet: Rendezvous, hello: Message, deadline: float, stopped: Callable[[], bool]
    ) -> bool:
        """Another pod's part: it stays connected until node 0 says that all are there."""
        while not stopped():
            peer = join(meet.address, meet.port, hello, deadline, stopped)
            if isinstance(peer, str):
                self._log.say(f"pod {meet.node_rank}: {peer}")
                return False
            if peer is None:
                break
            try:
                while not stopped():
                    if peer.receive(POLL_SECONDS) == BEGIN:
                        return True
            except (OSError, ValueError):  # node 0 was started again: it is met anew
                time.sleep(POLL_SECONDS)
            finally:
                peer.close()
        return False


def pod_exit_code(code: int, last: Attempt | None, *, stops: bool) -> int:
    """A pod's exit code.

    code: its node's; last: the newest attempt, as the record has it; stops: the run was asked to
    stop, and not by a person.
    """
    if code not in (EXIT_DONE, EXIT_FAILED):
        return code
    if last is None or not last.final:
        return EXIT_STOPPED if code == EXIT_DONE and stops else code
    in_vain = last.outcome == "stopped" and stops
    return EXIT_FAULT if code == EXIT_FAILED or in_vain else code
