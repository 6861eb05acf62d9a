"""One all-reduce test on this node, and what the tests of all nodes say about which node is bad.

The test itself is `python -m titan_recipes.trainer.preflight`, one torchrun on every node.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from titan_recipes.config.job import Job
from titan_recipes.config.layout import PREFLIGHT_MARK, RunLayout
from titan_recipes.errors import EXIT_DONE
from titan_recipes.launch.torchrun import (
    ATTEMPT_FLAG,
    Rendezvous,
    Torchrun,
    explain,
    torchrun_command,
    torchrun_env,
)

TEST_MODULE = "titan_recipes.trainer.preflight"
POLL_SECONDS = 0.1
DEADLINE_SECONDS = 420.0  # what the ranks take when they wait for everything


@dataclass(frozen=True, slots=True)
class Group:
    """What the ranks of some nodes reached together."""

    nodes: tuple[int, ...]
    error: str
    """Why they could not sum; "" = the sums were right."""
    gib_per_second: float | None
    """Bus bandwidth of the best size; None where nothing was measured."""

    def fault(self, min_gib_per_second: float) -> str:
        """What is wrong with it; "" = nothing."""
        if self.error:
            return self.error
        speed = self.gib_per_second
        if speed is not None and speed < min_gib_per_second:
            return f"{speed:.3g} GiB/s, {min_gib_per_second:g} are wanted"
        return ""


@dataclass(frozen=True, slots=True)
class LocalEnd:
    """How a test ended on this node. groups: what rank 0 printed, [] elsewhere or where it died."""

    groups: list[Group]
    failure: str
    """Why torchrun failed by itself; "" = it did not."""


def run_test(
    layout: RunLayout,
    job: Job,
    where: Rendezvous,
    attempt: int,
    test: str,
    *,
    module: str,
    say: Callable[[str], None],
    ended: Callable[[], bool],
) -> LocalEnd:
    """This node's torchrun of a test, killed when rank 0 has printed, or when `ended`."""
    printed: list[Group] = []

    def write(line: bytes) -> None:
        text = line.decode("utf-8", errors="replace").rstrip()
        if text.startswith(PREFLIGHT_MARK):
            printed.extend(read_groups(json.loads(text.removeprefix(PREFLIGHT_MARK))))
        else:
            say(text)

    ranks = job.plan.gpus_per_node
    torchrun = Torchrun(
        torchrun_command(
            where, ranks, module, [str(layout.job), ATTEMPT_FLAG, str(attempt), "--test", test]
        ),
        torchrun_env(job.env, ranks),
        layout.logs / f"preflight-{where.node_rank}.log",
        write,
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    try:
        while (code := torchrun.wait(POLL_SECONDS)) is None:
            # It would wait for the other nodes' torchruns, minutes where one has died.
            if printed or ended() or time.monotonic() > deadline:
                return LocalEnd(printed, "")
    finally:
        torchrun.kill()
    failed = code != EXIT_DONE and not printed
    return LocalEnd(printed, explain(code, torchrun.errors(), None).cause if failed else "")


def read_groups(line: Mapping[str, Any]) -> list[Group]:
    """The groups of the JSON line that rank 0 prints."""
    return [
        Group(
            tuple(group["nodes"]),
            group["error"],
            max((speed for _, speed in group["sizes"]), default=None),
        )
        for group in line["groups"]
    ]


def suspects(pairs: Sequence[tuple[tuple[int, ...], bool]]) -> set[int]:
    """The nodes that explain which pairs failed. pairs: (nodes, whether they could sum).

    A node that could with one neighbour is not the bad one of another pair, unless neither is. Of
    the rest, those in most failed pairs come first: they explain their neighbours' failures.
    """
    cleared = {node for nodes, good in pairs if good and len(nodes) > 1 for node in nodes}
    failed: list[set[int]] = [
        set(nodes) - cleared or set(nodes) for nodes, good in pairs if not good
    ]
    named = set[int]()
    while failed:
        counts = Counter(node for nodes in failed for node in nodes)
        most = max(counts.values())
        worst = {node for node, count in counts.items() if count == most}
        named |= worst
        failed = [nodes for nodes in failed if not nodes & worst]
    return named
