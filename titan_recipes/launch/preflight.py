"""The preflight: the nodes of an attempt are checked before the trainer starts, bad ones are named.

Every node checks itself, leaves what it found in the run directory (node_report) and goes to node
0 (meeting). Node 0 compares what came: who is missing, whose file is not in its own run directory,
whose clock or torch is another. If all is well the ranks of all nodes sum integers (all_reduce); if
that fails or is slow, each node does it alone and then with either neighbour. Every node ends with
the same verdict.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from titan_recipes.config.job import Job
from titan_recipes.config.layout import RankExit, RunLayout
from titan_recipes.errors import EXIT_FAULT, LaunchError
from titan_recipes.launch.all_reduce import (
    DEADLINE_SECONDS,
    TEST_MODULE,
    Group,
    LocalEnd,
    run_test,
    suspects,
)
from titan_recipes.launch.attempts import EXIT_FAILED
from titan_recipes.launch.hostlist import exclude_option, expand, write_exclude
from titan_recipes.launch.meeting import Peer, clock_skew, gather, join, wrong_clocks
from titan_recipes.launch.node_report import Place, Report, look

JOIN_SECONDS = 300.0  # from the first node to the last: images may have to be pulled
SHARED_SECONDS = 15.0  # for a file written elsewhere to show up here
REPLY_SECONDS = 60.0  # for a node to end its ranks
POLL_SECONDS = 0.2
WAIT_SECONDS = JOIN_SECONDS + DEADLINE_SECONDS  # for node 0's next word


def preflight(
    layout: RunLayout,
    job: Job,
    nodes: int,
    node_rank: int,
    master_addr: str,
    run_id: str,
    attempt: int,
    say: Callable[[str], None],
    *,
    module: str = TEST_MODULE,
    join_seconds: float = JOIN_SECONDS,
) -> RankExit | None:
    """Check all nodes of an attempt; None where they are good, or where the run is to stop.

    Else exit code 3 with the bad nodes in the cause. With preflight.exclude_bad_nodes, under SLURM
    and where other nodes may be had, it is 1, and node 0 has left the hosts to exclude in EXCLUDE.
    Raises LaunchError where another process has the port.
    """
    here = Place(layout, job, nodes, node_rank, master_addr, run_id, attempt, say, module)
    deadline = time.monotonic() + join_seconds
    report = look(here)
    if node_rank == 0:
        verdict = Lead(here, report).decide(deadline)
    else:
        verdict = follow(here, report, deadline)
    if verdict and node_rank == 0:
        say(verdict.cause)
    return verdict


# --- every node but node 0 ------------------------------------------------------------------------


def follow(here: Place, report: Report, deadline: float) -> RankExit | None:
    """Do what node 0 asks for until it has a verdict."""
    meeting = here.meet("meeting")
    hello = {"meeting": here.run_id, "rank": here.node_rank, "report": asdict(report)}
    peer = join(here.address, meeting.port, hello, deadline, here.stopped)
    if isinstance(peer, str):
        return RankExit(EXIT_FAILED, -1, f"preflight: {report.host}: {peer}")
    if peer is None:
        return None
    try:
        return _obey(here, peer)
    except (OSError, ValueError) as error:
        return RankExit(EXIT_FAILED, -1, f"preflight: node 0 broke off: {error}")
    finally:
        peer.close()


def _obey(here: Place, peer: Peer) -> RankExit | None:
    """Raises OSError or ValueError where node 0 is gone."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        message = peer.receive(POLL_SECONDS)
        if message is None:
            if here.stopped():
                return None
            continue
        deadline = time.monotonic() + WAIT_SECONDS
        if "test" in message:
            end = _local_test(here, message["test"], lambda: peer.receive(0.0) is not None)
            peer.send({"failure": end.failure})
        elif "verdict" in message:
            return RankExit(**message["verdict"]) if message["verdict"] else None
        elif "ask" in message:
            peer.send({"time": time.time()})
    raise ConnectionError(f"no word within {WAIT_SECONDS:.0f} s")


def _local_test(here: Place, test: str, ended: Callable[[], bool]) -> LocalEnd:
    """This node's part of a test."""
    return run_test(
        here.layout,
        here.job,
        here.meet(test),
        here.attempt,
        test,
        module=here.module,
        say=here.say,
        ended=ended,
    )


# --- node 0 ---------------------------------------------------------------------------------------


@dataclass
class Lead:
    """Node 0: who came, what is wrong with whom, and the verdict."""

    here: Place
    own: Report
    peers: dict[int, Peer] = field(default_factory=dict[int, Peer])
    reports: dict[int, Report] = field(default_factory=dict[int, Report])
    faults: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    cure: str = ""
    """What to do where excluding nodes does not help."""

    def decide(self, deadline: float) -> RankExit | None:
        """The verdict, which every node that came is told."""
        self.reports[0] = self.own
        try:
            if self.here.nodes > 1:
                self._gather(deadline)
            general = self._judge()
            verdict = None if self.here.stopped() else self._verdict(general)
            for peer in self.peers.values():
                with suppress(OSError):
                    peer.send({"verdict": asdict(verdict) if verdict else None})
            return verdict
        finally:
            for peer in self.peers.values():
                peer.close()

    def _blame(self, node: int, what: str) -> None:
        self.faults.setdefault(node, []).append(what)

    def _gather(self, deadline: float) -> None:
        here = self.here
        port, wanted = here.meet("meeting").port, set(range(1, here.nodes))
        try:
            came = gather(port, wanted, here.run_id, deadline, here.stopped)
        except OSError as error:
            cure = "the next attempt takes another one"
            raise LaunchError(f"preflight: port {port}: {error.strerror}; {cure}") from error
        for node, (peer, hello) in came.items():
            self.peers[node], self.reports[node] = peer, Report.read(hello["report"])

    def _judge(self) -> str:
        """Fill `faults`; what is wrong with no node in particular, "" = nothing."""
        for node, report in self.reports.items():
            for finding in report.findings:
                if not finding.ok:
                    self._blame(node, finding.seen)
                    self.cure = self.cure or finding.cure
        for node in range(self.here.nodes):
            if node not in self.reports:
                where = f"{self.here.address} port {self.here.meet('meeting').port}"
                self._blame(node, f"did not start, or has no way to {where}")
        self._compare_folders()
        self._compare_clocks()
        self._compare_facts()
        if self.faults or self.here.stopped():
            return ""
        return self._compare_sums()

    def _compare_folders(self) -> None:
        """A node whose report is not here has another file system in the run directory's place."""
        deadline = time.monotonic() + SHARED_SECONDS
        for node in self.peers.keys() - self.faults.keys():
            while not self._has_report(node):
                if time.monotonic() > deadline:
                    self._blame(node, f"{self.here.layout.root} is another folder there")
                    break
                time.sleep(POLL_SECONDS)

    def _has_report(self, node: int) -> bool:
        try:
            text = self.here.report_file(node).read_text(encoding="utf-8")
            return Report.read(json.loads(text)) == self.reports[node]
        except (OSError, ValueError):
            return False

    def _compare_clocks(self) -> None:
        """Against the middle one of all clocks: node 0's may be the wrong one."""
        ahead = {0: 0.0}
        for node, peer in self.peers.items():
            try:
                ahead[node] = clock_skew(peer)
            except (OSError, ValueError) as error:
                self._blame(node, f"broke off: {error}")
        for node, what in wrong_clocks(ahead, self.here.job.site.preflight.max_clock_skew_seconds):
            self._blame(node, what)
            self.cure = self.cure or "set the clocks by NTP"

    def _compare_facts(self) -> None:
        for name in self.own.facts:
            values = {node: report.facts.get(name, "none") for node, report in self.reports.items()}
            common, _ = Counter(values.values()).most_common(1)[0]
            for node, value in values.items():
                if value != common:
                    self._blame(node, f"{name} {value}, the others have {common}")

    # --- all-reduce -------------------------------------------------------------------------------

    def _compare_sums(self) -> str:
        """Have the ranks sum; narrow it down where they can't."""
        here, ranks = self.here, self.here.job.plan.gpus_per_node
        wanted = here.job.site.preflight.min_bandwidth_gib
        if here.nodes * ranks == 1:
            return ""
        groups = self._test("all")
        if not groups or self.faults:
            return self._lost_everywhere()
        everyone = groups[0]
        fault = everyone.fault(wanted)
        if not fault:
            speed = everyone.gib_per_second or 0.0
            names = f"{here.nodes} node(s), {here.nodes * ranks} ranks"
            here.say(f"preflight: {names}: all good, all-reduce at {speed:.3g} GiB/s (bus)")
            return ""
        here.say(f"preflight: all-reduce over all ranks: {fault}")
        if here.nodes == 1:
            self._blame(0, f"all-reduce: {fault}")
            return ""
        if ranks > 1:
            self._blame_alone(self._test("local"), wanted)
        if not self.faults and not here.stopped():
            pairs = groups
            if here.nodes > 2:
                pairs = [*self._test("pairs-0"), *self._test("pairs-1")]
            self._blame_pairs(pairs, wanted)
        if self.faults:
            return ""
        return f"all-reduce over all ranks: {fault}; no node does it badly alone or in pairs"

    def _blame_alone(self, groups: Sequence[Group], wanted: float) -> None:
        for group in groups:
            if fault := group.fault(wanted):
                self._blame(group.nodes[0], f"all-reduce among its own ranks: {fault}")

    def _blame_pairs(self, pairs: Sequence[Group], wanted: float) -> None:
        for node in sorted(suspects([(pair.nodes, not pair.fault(wanted)) for pair in pairs])):
            pair = next(pair for pair in pairs if node in pair.nodes and pair.fault(wanted))
            other = next(other for other in pair.nodes if other != node)
            self._blame(node, f"all-reduce with {self._host(other)}: {pair.fault(wanted)}")

    def _lost_everywhere(self) -> str:
        """Ranks that fail on all nodes: no node's fault."""
        if len(self.faults) < self.here.nodes or self.here.nodes == 1:
            return "" if self.faults else "all-reduce over all ranks: no answer from rank 0"
        what = self.faults[0][0]
        self.faults.clear()
        return f"on all nodes: {what}"

    def _test(self, test: str) -> list[Group]:
        """Run a test on all nodes; nodes whose torchrun failed are blamed."""
        here = self.here
        for peer in self.peers.values():
            with suppress(OSError):  # heard of below
                peer.send({"test": test})
        failures: dict[int, str] = {}

        def ended() -> bool:
            for node in self.peers.keys() - failures.keys():
                self._hear(node, 0.0, failures)
            return here.stopped() or any(failures.values())

        end = _local_test(here, test, ended)
        failures[0] = end.failure
        for peer in self.peers.values():
            with suppress(OSError):
                peer.send({"end": test})
        for node in self.peers.keys() - failures.keys():
            self._hear(node, REPLY_SECONDS, failures)
            failures.setdefault(node, "its ranks do not end")
        for node, failure in failures.items():
            if failure:
                self._blame(node, failure)
        return end.groups

    def _hear(self, node: int, seconds: float, failures: dict[int, str]) -> None:
        """Note how a node's part of a test ended, if it says so in time."""
        try:
            if reply := self.peers[node].receive(seconds):
                failures[node] = str(reply["failure"])
        except (OSError, ValueError) as error:
            failures[node] = f"broke off: {error}"

    # --- verdict ----------------------------------------------------------------------------------

    def _host(self, node: int) -> str:
        if node in self.reports:
            return self.reports[node].host
        listed = expand(os.environ.get("SLURM_JOB_NODELIST", ""))
        return listed[node] if node < len(listed) else f"node {node}"

    def _verdict(self, general: str) -> RankExit | None:
        if not self.faults and not general:
            return None
        bad, here = sorted(self.faults), self.here
        hosts = [self._host(node) for node in bad]
        parts = [f"{self._host(node)}: {', '.join(self.faults[node])}" for node in bad]
        parts += [general] if general else []
        in_slurm, code = "SLURM_JOB_ID" in os.environ, EXIT_FAULT
        # Where all of several nodes are bad, what is asked of them is.
        if bad and (len(bad) < here.nodes or (here.nodes == 1 and in_slurm)):
            parts.append(f"exclude {'it' if len(bad) == 1 else 'them'}: {exclude_option(hosts)}")
            if here.job.site.preflight.exclude_bad_nodes and in_slurm:
                write_exclude(here.layout, here.job, hosts)
                code = EXIT_FAILED
        elif self.cure:
            parts.append(self.cure)
        return RankExit(code, -1, f"preflight: {'; '.join(parts)}")
