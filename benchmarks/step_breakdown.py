"""Where a step of our trainer goes: attention, matmul, exposed collectives, optimizer, host.

Warm steps of the trainer run under torch.profiler; trace_time.py reads the trace. Beside the share
of each class stands the step's time without the profiler, which itself costs the host time. Under
torchrun each rank trains its share and rank 0 prints its own time. The last line is JSON.

    python benchmarks/step_breakdown.py
    python benchmarks/step_breakdown.py --device cuda --flavor 1b --seq-len 8192 --batch 1 --compile
    torchrun --nproc-per-node 2 benchmarks/step_breakdown.py
"""

import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from peers import Ours
from report import add_workload_options, argument_parser, finish, table, workload_of
from torch.profiler import ProfilerActivity, profile, record_function
from trace_time import CLASSES, STEP, breakdown, longest
from workload import LOG_FREQ, Workload, quiet, synchronize


def traced_events(workload: Workload, device: torch.device, steps: int) -> tuple[list[Any], float]:
    """The profiler's trace of warm steps, and a step's seconds without the profiler."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with tempfile.TemporaryDirectory() as folder, quiet():
        ours = Ours(workload, workload.job(), device, Path(folder))
        ours.train(LOG_FREQ)
        synchronize(device)
        start = time.perf_counter()
        ours.train(steps)
        synchronize(device)
        seconds = (time.perf_counter() - start) / steps
        with profile(activities=activities) as profiler:
            for _ in range(steps):
                with record_function(STEP):
                    ours.train(1)
                    synchronize(device)
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"], seconds


def main() -> None:
    """Measure, print a table and, last, one line of JSON."""
    parser = argument_parser(__doc__)
    add_workload_options(parser)
    parser.add_argument("--set", action="append", default=[], help="a further setting, key=value")
    parser.add_argument("--steps", type=int, default=LOG_FREQ, help="profiled steps")
    arguments = parser.parse_args()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    workload = workload_of(arguments, arguments.set).changed(ranks=ranks)
    is_cpu = workload.device == "cpu"
    device = torch.device("cpu") if is_cpu else torch.device("cuda", local_rank)
    if is_cpu:
        torch.set_num_threads(1)
    events, seconds = traced_events(workload, device, arguments.steps)
    if int(os.environ.get("RANK", "0")) == 0:
        report(workload, events, seconds, arguments.steps, arguments.write)
    if ranks > 1:
        distributed: Any = torch.distributed
        distributed.barrier()
        os._exit(0)  # gloo's threads may abort a teardown.


def report(
    workload: Workload, events: list[Any], seconds: float, steps: int, write: Path | None
) -> None:
    """Print the table, the longest kernels and the JSON."""
    found = breakdown(events)
    shares = {name: found[name] / found["wall"] for name in CLASSES}
    rows = [
        [name, f"{found[name] / steps / 1e3:,.2f}", f"{share:.1%}"]
        for name, share in shares.items()
    ]
    print("\n".join(table(["class", "ms a step", "share"], rows)))
    profiled_ms = found["wall"] / steps / 1e3
    print(f"profiled step {profiled_ms:,.2f} ms, unprofiled {1e3 * seconds:,.2f} ms")
    kernels = [
        [name[:70], kind, f"{taken / steps / 1e3:,.2f}"]
        for name, kind, taken in longest(events, 12)
    ]
    print("\n".join(table(["longest, without what they call", "class", "ms a step"], kernels)))
    figures = {
        **dataclasses.asdict(workload),
        "ms_a_step": {name: round(found[name] / steps / 1e3, 4) for name in CLASSES},
        "shares": {name: round(share, 4) for name, share in shares.items()},
        "profiled_step_ms": round(profiled_ms, 3),
        "step_ms": round(1e3 * seconds, 3),
        "steps": steps,
    }
    finish("step_breakdown", figures, write)


if __name__ == "__main__":
    main()
