"""The node entry point's command line, the same under every scheduler."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from titan_recipes.config.home import expanded
from titan_recipes.launch.record import RUN_DIR_FLAG

TRAINER_MODULE = "titan_recipes.trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    run_dir: Path
    job: str
    nodes: int
    node_rank: int
    master_addr: str
    run_id: str
    resumed: bool
    in_pod: bool
    trainer_module: str


def parse_options(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="titan_recipes.launch.node", description=__doc__)
    parser.add_argument(RUN_DIR_FLAG, type=Path, required=True, help="the run directory")
    parser.add_argument("--job", default="", help="the encoded job; default: the directory's own")
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes")
    parser.add_argument("--node-rank", type=int, default=0, help="this node's place among them")
    parser.add_argument(
        "--node-rank-env", default="", help="environment variable that holds its place"
    )
    parser.add_argument("--master-addr", default="", help="address of node 0")
    parser.add_argument(
        "--master-addr-env", default="", help="environment variable that holds the address"
    )
    parser.add_argument("--run-id", default="", help="the scheduler's id, the same on all nodes")
    parser.add_argument(
        "--resumed", action="store_true", help="a person asked for it: past failures don't count"
    )
    parser.add_argument(
        "--in-pod",
        action="store_true",
        help="in a Kubernetes pod: print what the launcher has to know, wait for late pods, "
        "end so that Kubernetes starts a run again that was stopped, and no other",
    )
    parser.add_argument("--trainer-module", default=TRAINER_MODULE, help=argparse.SUPPRESS)
    given = vars(parser.parse_args(argv))
    if place := os.environ.get(given.pop("node_rank_env")):
        given["node_rank"] = int(place)
    variable = given.pop("master_addr_env")
    given["master_addr"] = given["master_addr"] or os.environ.get(variable) or "127.0.0.1"
    given["run_dir"] = expanded(given["run_dir"]).resolve()
    return Options(**given)
