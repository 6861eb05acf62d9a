"""What a node of an attempt finds about itself, and leaves where node 0 should see it.

That is attempts/preflight/<attempt>/node-<rank>.json in the run directory.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from titan_recipes import __version__
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.launch.node_checks import Finding, check_node, torch_build
from titan_recipes.launch.torchrun import Rendezvous, rendezvous


@dataclass(frozen=True, slots=True)
class Place:
    """This node in its attempt."""

    layout: RunLayout
    job: Job
    nodes: int
    node_rank: int
    address: str
    run_id: str
    attempt: int
    say: Callable[[str], None]
    module: str

    def meet(self, purpose: str) -> Rendezvous:
        """A port of its own for each purpose: one in use a moment ago may not be free yet."""
        run_id = f"{self.run_id}.{self.attempt}.{purpose}"
        return rendezvous(self.nodes, self.node_rank, self.address, run_id)

    def stopped(self) -> bool:
        return self.layout.stop.exists()

    def report_file(self, node: int) -> Path:
        return self.layout.preflight(self.attempt) / f"node-{node}.json"


@dataclass(frozen=True, slots=True)
class Report:
    """What a node found about itself."""

    rank: int
    host: str
    """Its name in SLURM, which --exclude takes; else the host name."""
    time: float
    findings: list[Finding]
    facts: dict[str, str]
    """What must be the same on all nodes."""

    @staticmethod
    def read(data: Mapping[str, Any]) -> "Report":
        fields = dict(data)
        fields["findings"] = [Finding(**finding) for finding in fields["findings"]]
        return Report(**fields)


def look(here: Place) -> Report:
    """Check this node, and leave the report where node 0 should see it."""
    plan, root = here.job.plan, here.layout.root
    folders = dict.fromkeys((root, root / here.job.checkpoint.folder))
    findings = check_node(
        plan.gpu, plan.gpus_per_node, here.job.site.preflight.min_shm_gib, list(folders)
    )
    facts = {"titan-recipes": __version__, "torch": torch_build().get("__version__", "none")}
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    report = Report(here.node_rank, host, time.time(), findings, facts)
    file = here.report_file(here.node_rank)
    with suppress(OSError):  # the folder's own finding says so
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(asdict(report), indent=1))
    for finding in findings:
        if not finding.ok:
            here.say(f"preflight: {host}: {finding.seen}; {finding.cure}")
    return report
