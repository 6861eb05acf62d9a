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
from dataclasses import asdict

from titan_recipes.config.layout import ATTEMPT_MARK, RunLayout
from titan_recipes.errors import EXIT_DONE, EXIT_FAULT, LaunchError
from titan_recipes.launch.attempts import EXIT_FAILED
from titan_recipes.launch.logs import Tail
from titan_recipes.launch.meeting import gather, join
from titan_recipes.launch.node_log import NodeLog
from titan_recipes.launch.node_options import Options
from titan_recipes.launch.record import Attempt
from titan_recipes.launch.torchrun import rendezvous

EXIT_STOPPED = 143
"""128 + SIGTERM: the run was asked to stop, has saved, and has more to do."""
ASSEMBLE_SECONDS = 3600.0
WAITING = "waiting for the run's other pods"


class Pod:
    """This node, as a pod; ranks: how many it has."""

    def __init__(self, options: Options, layout: RunLayout, ranks: int, log: NodeLog) -> None:
        self._options, self._layout, self._log = options, layout, log
        self._ranks = range(options.node_rank * ranks, (options.node_rank + 1) * ranks)
        self._tails = dict[int, Tail]()

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

    def assemble(self, stopped: Callable[[], bool]) -> None:
        """Wait until all pods of the run are there; returns early where it is to stop.

        Raises LaunchError where some did not come.
        """
        where, deadline = self._options, time.monotonic() + ASSEMBLE_SECONDS
        if where.nodes == 1:
            return
        meeting = f"{where.run_id}.assembly"
        meet = rendezvous(where.nodes, where.node_rank, where.master_addr, meeting)
        if where.node_rank > 0:
            hello = {"meeting": meeting, "rank": where.node_rank}
            peer = join(meet.address, meet.port, hello, deadline, stopped)
            if isinstance(peer, str):
                raise LaunchError(f"pod {where.node_rank}: {peer}")
            if peer is not None:
                peer.close()
            return
        self._log.say(WAITING)
        others = set(range(1, where.nodes))
        came = gather(meet.port, others, meeting, deadline, stopped)
        for peer, _ in came.values():
            peer.close()
        if (missing := sorted(others - came.keys())) and not stopped():
            names = ", ".join(map(str, missing))
            late = f"did not come within {ASSEMBLE_SECONDS:.0f} s"
            raise LaunchError(f"pods {names} {late}; see: kubectl get pods, kubectl describe pod")


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
