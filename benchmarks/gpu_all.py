"""All that a GPU is borrowed for, in one command of less than nine minutes and without a network.

First ours beside torchtitan and transformers + accelerate (versus.py) for 1b and 3b, then our own
rows (gpu_single.py) in what time is left. Each program and row is a process of its own; what fails
or does not fit is named. One table of each comes last, and one line of JSON.

    python benchmarks/gpu_all.py --minutes 8.5 --write results.json
    python benchmarks/gpu_all.py --device cpu --flavors debug --seq-len 128 --rows "debug eager 128"
"""

import sys
import time
from typing import Any

import gpu_single
import versus
from report import argument_parser, finish
from workload import Workload

PROGRAMS = ("ours", "torchtitan", "hf")
VERSUS_SHARE = 0.7
"""Of the time; a comparison that ends early leaves the rest to the others."""


def beside_others(
    workload: Workload, arguments: Any, memory_gib: float, seconds: float
) -> dict[str, Any]:
    """A comparison's figures with as little activation checkpointing as torchtitan too can afford;
    {"fault": why} if there are none."""
    # selective is no choice: transformers has none.
    least = gpu_single.least_checkpointing(workload, 0.85 * memory_gib)
    workload = workload.changed(ac="none" if least == "none" else "full")
    try:
        return versus.compare(
            workload,
            list(PROGRAMS),
            peers=arguments.peers,
            rounds=arguments.rounds,
            steps=arguments.steps,
            seconds=seconds,
        )
    except Exception as error:  # The other parts are worth their time all the same.
        return {"fault": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Measure, print the tables and, last, one line of JSON."""
    parser = argument_parser(__doc__)
    versus.add_options(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--flavors", default="1b,3b", help="compared with others, with commas")
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--rows", default=",".join(gpu_single.ROWS), help="as of gpu_single.py")
    parser.add_argument("--minutes", type=float, default=8.5, help="time for all of it")
    parser.set_defaults(rounds=7, steps=4)
    arguments = parser.parse_args()
    began = time.perf_counter()
    budget = 60 * arguments.minutes
    ceiling = gpu_single.in_process("--ceiling", arguments.device, timeout=120)
    flavors = arguments.flavors.split(",")
    comparisons: dict[str, Any] = {}
    for number, flavor in enumerate(flavors):
        left = VERSUS_SHARE * budget - (time.perf_counter() - began)
        workload = Workload(
            flavor=flavor,
            seq_len=arguments.seq_len,
            batch=1,
            enable_compile=arguments.device == "cuda",
            device=arguments.device,
        )
        share = left / (len(flavors) - number)
        memory = ceiling.get("memory_gib", 80.0)
        comparisons[flavor] = beside_others(workload, arguments, memory, share)
    left = budget - (time.perf_counter() - began)
    single = gpu_single.run_rows(arguments.rows.split(","), arguments.device, left / 60, ceiling)
    print()
    for flavor, figures in comparisons.items():
        fault = figures.get("fault")
        print("\n".join([f"{flavor}: {fault}"] if fault else versus.lines(figures)), end="\n\n")
    print("\n".join(gpu_single.lines(single)))
    finish("gpu_all", {"versus": comparisons, "single": single}, arguments.write)
    sys.exit(0 if single["rows"] else 1)


if __name__ == "__main__":
    main()
