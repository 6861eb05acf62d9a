"""The preflight: a process for each node in one run directory, torchrun where ranks sum."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from past_runs import debug_job

from titan_recipes.config.job import Job, to_toml
from titan_recipes.config.layout import RankExit, RunLayout
from titan_recipes.config.site import Preflight
from titan_recipes.errors import EXIT_FAULT
from titan_recipes.launch.all_reduce import Group, suspects
from titan_recipes.launch.hostlist import expand, write_exclude
from titan_recipes.launch.meeting import Peer, clock_skew, gather, wrong_clocks

NODE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from titan_recipes.config.job import read_job
from titan_recipes.config.layout import RunLayout
from titan_recipes.launch import preflight
preflight.SHARED_SECONDS = 0.5
root, nodes, rank, run_id, module, seconds = sys.argv[1:]
layout = RunLayout(Path(root))
verdict = preflight.preflight(
    layout, read_job(layout.job), int(nodes), int(rank), "127.0.0.1", run_id, 1,
    lambda text: print(text, flush=True), module=module, join_seconds=float(seconds),
)
print(json.dumps(verdict and asdict(verdict)))
"""
SICK = """
import os, sys
import torch.distributed as dist
from titan_recipes.trainer import preflight
if os.environ["GROUP_RANK"] == os.environ.get("SICK_NODE"):
    if os.environ["SICKNESS"] == "dies":
        os.kill(os.getpid(), 9)
    right = dist.all_reduce
    def wrong(tensor, *args):
        right(tensor, *args)
        if dist.get_world_size() > 1:
            tensor[5] += 1
    dist.all_reduce = wrong
code = preflight.main()
sys.stdout.flush()
os._exit(code)
"""
"""The real test, with one node whose ranks die, or whose network adds 1 to the sixth sum."""


@dataclass
class Ended:
    verdict: RankExit | None
    said: list[str]


class Nodes:
    """Processes that are the nodes of one attempt, on this machine."""

    def __init__(self, root: Path) -> None:
        self.layout = RunLayout(root)
        # Ports follow from it: two test processes at a time must not share them.
        self.run_id = f"{root}.{os.getpid()}"
        self._running: list[subprocess.Popen[str]] = []

    def prepare(self, nodes: int, *, ranks: int = 1, root: Path | None = None, **given: Any) -> Job:
        """Write job.toml with these preflight settings."""
        batch = 2 * nodes * ranks
        job = debug_job(
            f"plan.nodes={nodes}",
            f"plan.gpus_per_node={ranks}",
            f"training.global_batch_size={batch}",
        )
        settings = Preflight(**{"enable": True, "min_shm_gib": 0.0, **given})
        job = replace(job, site=replace(job.site, preflight=settings))
        layout = RunLayout(root) if root else self.layout
        layout.logs.mkdir(parents=True)
        layout.job.write_text(to_toml(job))
        return job

    def start(
        self,
        rank: int,
        nodes: int,
        *,
        root: Path | None = None,
        module: str = "titan_recipes.trainer.preflight",
        seconds: float = 60.0,
        **env: str,
    ) -> None:
        """Start a node called node<rank + 1>."""
        command = [sys.executable, "-c", NODE, str(root or self.layout.root), str(nodes), str(rank)]
        process = subprocess.Popen(
            [*command, self.run_id, module, str(seconds)],
            env={**os.environ, "SLURMD_NODENAME": f"node{rank + 1}", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._running.append(process)

    def end(self) -> list[Ended]:
        """How each ended, in the order of their start."""
        ended: list[Ended] = []
        for process in self._running:
            output, _ = process.communicate(timeout=200)
            lines = output.splitlines()
            assert process.returncode == 0, output
            verdict = json.loads(lines[-1])
            ended.append(Ended(RankExit(**verdict) if verdict else None, lines[:-1]))
        return ended

    def kill(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sick.py").write_text(textwrap.dedent(SICK))
    monkeypatch.setenv("PYTHONPATH", str(modules))
    started = Nodes(tmp_path / "outputs" / "run")
    yield started
    started.kill()


def test_two_nodes_when_all_is_well_sum_and_leave_their_reports(nodes: Nodes) -> None:
    nodes.prepare(2)
    nodes.start(0, 2)
    nodes.start(1, 2)
    first, second = nodes.end()
    assert (first.verdict, second.verdict) == (None, None)
    said = first.said[-1]
    assert said.startswith("preflight: 2 node(s), 2 ranks: all good, all-reduce at ")
    assert said.endswith(" GiB/s (bus)")
    folder = nodes.layout.preflight(1)
    assert folder == nodes.layout.root / "attempts" / "preflight" / "1"
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("node-*.json"))]
    assert [(one["rank"], one["host"]) for one in reports] == [(0, "node1"), (1, "node2")]
    assert {finding["ok"] for one in reports for finding in one["findings"]} == {True}
    assert not nodes.layout.exclude.exists()


def test_two_nodes_when_a_rank_of_one_dies_name_that_node(nodes: Nodes) -> None:
    nodes.prepare(2)
    for rank in range(2):
        nodes.start(rank, 2, module="sick", SICK_NODE="1", SICKNESS="dies")
    first, second = nodes.end()
    assert first.verdict == second.verdict
    assert first.verdict is not None
    assert first.verdict.code == EXIT_FAULT
    assert first.verdict.cause == (
        "preflight: node2: rank 1 was killed by SIGKILL (out of memory?); "
        "exclude it: --exclude=node2"
    )


@pytest.mark.slow
def test_three_nodes_when_sums_with_one_are_wrong_name_it(nodes: Nodes) -> None:
    nodes.prepare(3)
    for rank in range(3):
        nodes.start(rank, 3, module="sick", SICK_NODE="1", SICKNESS="lies")
    ended = nodes.end()
    verdict = ended[0].verdict
    assert [one.verdict for one in ended] == [verdict] * 3
    assert verdict is not None
    assert verdict.cause == (
        "preflight: node2: all-reduce with node1: WrongSumError: 1 of 16384 sums are wrong, "
        "the first is 12, not 11; exclude it: --exclude=node2"
    )


def test_one_node_when_slower_than_asked_for_fails(nodes: Nodes) -> None:
    nodes.prepare(1, ranks=2, min_bandwidth_gib=1e6)
    nodes.start(0, 1)
    (ended,) = nodes.end()
    assert ended.verdict is not None
    assert ended.verdict.code == EXIT_FAULT
    assert ended.verdict.cause.startswith("preflight: node1: all-reduce: ")
    assert ended.verdict.cause.endswith(" GiB/s, 1e+06 are wanted")


def test_node_with_a_bad_finding_is_named_on_all(nodes: Nodes, tmp_path: Path) -> None:
    nodes.prepare(3)
    elsewhere = tmp_path / "elsewhere"  # node2's own settings: more shared memory than there is
    nodes.prepare(3, root=elsewhere, min_shm_gib=1e6)
    for rank in range(3):
        nodes.start(rank, 3, root=elsewhere if rank == 1 else None)
    ended = nodes.end()
    verdict = ended[0].verdict
    assert [one.verdict for one in ended] == [verdict] * 3
    assert verdict is not None
    assert verdict.code == EXIT_FAULT
    assert verdict.cause.startswith("preflight: node2: /dev/shm has ")
    assert verdict.cause.endswith(" GiB free, 1e+06 are wanted; exclude it: --exclude=node2")


def test_nodes_that_are_all_bad_are_told_the_cure_and_not_excluded(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    nodes.prepare(2, min_shm_gib=1e6, exclude_bad_nodes=True)
    nodes.start(0, 2)
    nodes.start(1, 2)
    verdict = nodes.end()[0].verdict
    assert verdict is not None
    assert verdict.code == EXIT_FAULT
    assert "node1: /dev/shm" in verdict.cause
    assert "node2: /dev/shm" in verdict.cause
    assert verdict.cause.endswith("in a container make it larger (--shm-size)")
    assert not nodes.layout.exclude.exists()


def test_node_in_another_folder_is_named_and_excluded_under_slurm(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    nodes.prepare(2, exclude_bad_nodes=True)
    nodes.prepare(2, root=tmp_path / "elsewhere")
    nodes.start(0, 2)
    nodes.start(1, 2, root=tmp_path / "elsewhere")
    first, second = nodes.end()
    root = nodes.layout.root
    assert first.verdict == second.verdict
    assert first.verdict == RankExit(
        1, -1, f"preflight: node2: {root} is another folder there; exclude it: --exclude=node2"
    )
    assert nodes.layout.exclude.read_text() == "node2\n"


def test_node_that_does_not_come_is_named_by_slurms_list(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[07-08]")
    nodes.prepare(2)
    nodes.start(0, 2, seconds=1.0)
    nodes.run_id += " of another port"  # this one calls where nobody listens
    nodes.start(1, 2, seconds=1.0, SLURMD_NODENAME="gpu08")
    first, second = nodes.end()
    assert first.verdict is not None
    assert first.verdict.cause.startswith("preflight: gpu08: did not start, or has no way to 127.")
    assert first.verdict.cause.endswith("; exclude it: --exclude=gpu08")
    assert second.verdict is not None
    assert second.verdict.code == 1
    assert second.verdict.cause.startswith("preflight: gpu08: no connection to 127.0.0.1 port ")


def test_node_with_another_torch_is_named(nodes: Nodes, tmp_path: Path) -> None:
    torch = tmp_path / "old" / "torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text("__version__ = '1.0'\n")
    nodes.prepare(3)
    for rank in range(3):
        nodes.start(rank, 3, **({"PYTHONPATH": str(torch.parent)} if rank == 2 else {}))
    verdict = nodes.end()[0].verdict
    assert verdict is not None
    assert verdict.cause.startswith("preflight: node3: torch 1.0, the others have 2.")


def test_preflight_when_asked_to_stop_lets_the_run_stop(nodes: Nodes) -> None:
    nodes.prepare(2)
    nodes.layout.stop.touch()
    nodes.start(0, 2)
    nodes.start(1, 2)
    assert [one.verdict for one in nodes.end()] == [None, None]


# --- parts ----------------------------------------------------------------------------------------


def listening(answer: Callable[[Peer], None]) -> int:
    """Port of a listener whose first guest is answered in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            peer = Peer(listener.accept()[0])
        answer(peer)
        peer.close()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def test_clock_skew_is_that_of_the_other_clock() -> None:
    def tell_time(peer: Peer) -> None:
        assert peer.receive(10.0) == {"ask": "time"}
        peer.send({"time": time.time() + 100.0})

    peer = Peer(socket.create_connection(("127.0.0.1", listening(tell_time))))
    assert clock_skew(peer) == pytest.approx(100.0, abs=1.0)
    with pytest.raises(ConnectionError, match="went away"):
        peer.receive(10.0)
    peer.close()


@pytest.mark.parametrize(
    ("ahead", "wrong"),
    [
        ({0: 0.0, 1: 4.9, 2: -4.9}, {}),
        ({0: 0.0, 1: 0.1, 2: -60.0}, {2: "its clock is 60.0 s behind, 5 are allowed"}),
        ({0: 0.0, 1: 60.0, 2: 60.1}, {0: "its clock is 60.0 s behind, 5 are allowed"}),
        ({0: 0.0, 1: 7.0}, {1: "its clock is 7.0 s ahead, 5 are allowed"}),
    ],
)
def test_wrong_clocks_are_far_from_the_middle_one(
    ahead: dict[int, float], wrong: dict[int, str]
) -> None:
    assert dict(wrong_clocks(ahead, 5.0)) == wrong


def test_gather_when_strangers_call_waits_for_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    hellos: list[Any] = [b"GET / HTTP/1.1\r\n\r\n", {"meeting": "other", "rank": 1}]
    hellos += [{"meeting": "m", "rank": 9}, {"meeting": "m", "rank": 1, "report": "r"}]

    def call() -> None:
        for hello in hellos:
            while True:
                try:
                    connection = socket.create_connection(("127.0.0.1", port))
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)
            text = hello if isinstance(hello, bytes) else json.dumps(hello).encode() + b"\n"
            connection.sendall(text)
            assert connection.recv(1) == b""  # shown out; the last one by the end of the test
            connection.close()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    came = gather(port, {1}, "m", time.monotonic() + 30.0, lambda: False)
    assert {rank: hello for rank, (_, hello) in came.items()} == {1: hellos[-1]}
    came[1][0].close()
    thread.join()


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ([((0, 1), True), ((2, 3), True)], set()),
        ([((0, 1), False)], {0, 1}),
        ([((0, 1), False), ((2,), True), ((1, 2), False), ((0,), True)], {1}),
        ([((0, 1), False), ((2,), True), ((1, 2), True), ((0,), True)], {0}),
        ([((0, 1), False), ((2, 3), True), ((1, 2), False), ((3, 0), True)], {1}),
        ([((0, 1), False), ((2, 3), False), ((1, 2), False), ((3, 0), True)], {1, 2}),
        ([((0, 1), False), ((2, 3), True), ((1, 2), True), ((3, 0), True)], {0, 1}),
        ([((0, 1), False), ((2, 3), False), ((1, 2), False), ((3, 0), False)], {0, 1, 2, 3}),
    ],
)
def test_suspects_explain_the_pairs_that_failed(
    pairs: list[tuple[tuple[int, ...], bool]], named: set[int]
) -> None:
    assert suspects(pairs) == named


def test_fault_of_a_group_is_its_error_or_its_speed() -> None:
    assert Group((0,), "", None).fault(10.0) == ""
    assert Group((0, 1), "", 12.0).fault(10.0) == ""
    assert Group((0, 1), "", 3.25).fault(10.0) == "3.25 GiB/s, 10 are wanted"
    assert Group((0, 1), "hung", 12.0).fault(0.0) == "hung"


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("node1", ["node1"]),
        ("node[1-3,07],login", ["node1", "node2", "node3", "node07", "login"]),
        ("a[08-10]", ["a08", "a09", "a10"]),
        ("r[1-2]n[1,3]-ib", ["r1n1-ib", "r1n3-ib", "r2n1-ib", "r2n3-ib"]),
    ],
)
def test_expand_writes_hostlists_out(text: str, hosts: list[str]) -> None:
    assert expand(text) == hosts


def test_write_exclude_keeps_what_was_excluded_before(tmp_path: Path) -> None:
    job = debug_job()
    job = replace(job, site=replace(job.site, slurm={"exclude": "node[1-2]"}))
    layout = RunLayout(tmp_path)
    write_exclude(layout, job, ["node7"])
    assert layout.exclude.read_text() == "node1,node2,node7\n"
    write_exclude(layout, job, ["node9", "node7"])
    assert layout.exclude.read_text() == "node1,node2,node7,node9\n"
