"""Where a profiler trace's time goes, out of the Chrome trace that torch.profiler exports.

On a GPU each moment of the steps is one of: a kernel runs (by its class), only a collective's
kernel runs (exposed: nothing is computed meanwhile), nothing runs (the GPU waits for the host). On
a CPU: an operator of the training thread runs, by its class, or none does (Python). Times are
microseconds.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

Event = dict[str, Any]
Span = tuple[float, float]

STEP = "benchmark step"
"""The annotation around each profiled step; it ends when the device has finished."""
CLASSES = ("attention", "matmul", "collectives exposed", "optimizer", "other", "host")

_OPTIMIZER = "Optimizer."
_ATTENTION = re.compile(r"flash|fmha|attention|sdpa|flex_", re.I)
# FSDP2 waits for gloo in its hook after backward; other waits for gloo are no operators.
_COLLECTIVE = re.compile(r"nccl|gloo:|c10d|record_param_comms|RegisterPostBackward", re.I)
_ADAM = re.compile(r"adam", re.I)
_MATMUL_KERNEL = re.compile(r"gemm|gemv|cutlass|nvjet|cublas|xmma|triton_tem|scaled_mm", re.I)
_MATMUL_OPERATOR = re.compile(r"(mm|linear|linear_pointwise|matmul)_?$")
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")


def breakdown(events: Sequence[Event]) -> dict[str, float]:
    """Class -> microseconds of all annotated steps; "wall" is their length. ValueError without."""
    inside, wall = _of_steps(events)
    found = _of_gpu(inside) if _on_gpu(inside) else _of_cpu(inside)
    found["host"] = wall - sum(found.values())
    return {"wall": wall, **{name: found.get(name, 0.0) for name in CLASSES}}


def longest(events: Sequence[Event], count: int) -> list[tuple[str, str, float]]:
    """Name, class and microseconds of the kernels, or else operators, that take most in all."""
    inside, _ = _of_steps(events)
    total: dict[tuple[str, str], float] = defaultdict(float)
    if _on_gpu(inside):
        for event in inside:
            if event["cat"] in _ON_GPU:
                total[event["name"], class_of_kernel(event["name"])] += event["dur"]
    else:
        for name, kind, taken in _own_times(inside):
            total[name, kind] += taken
    ordered = sorted(total, key=lambda key: -total[key])[:count]
    return [(name, kind, total[name, kind]) for name, kind in ordered]


def _of_steps(events: Sequence[Event]) -> tuple[list[Event], float]:
    """The events that began in an annotated step, and the microseconds of all steps."""
    complete = [event for event in events if event.get("ph") == "X" and "dur" in event]
    windows = [
        _span(event)
        for event in complete
        if event["name"] == STEP and event["cat"] == "user_annotation"
    ]
    if not windows:
        raise ValueError("the trace has no annotated step")
    inside = [event for event in complete if any(a <= event["ts"] < b for a, b in windows)]
    return inside, sum(b - a for a, b in windows)


def _on_gpu(events: Sequence[Event]) -> bool:
    return any(event["cat"] == "kernel" for event in events)


def class_of_kernel(name: str) -> str:
    """The class of a GPU kernel by its name."""
    if _COLLECTIVE.search(name):
        return "collectives exposed"
    if _ATTENTION.search(name):
        return "attention"
    if _ADAM.search(name):
        return "optimizer"
    return "matmul" if _MATMUL_KERNEL.search(name) else "other"


def class_of_operator(name: str) -> str:
    """The class of a CPU operator ("aten::mm") by its name."""
    if _COLLECTIVE.search(name):
        return "collectives exposed"
    if _ATTENTION.search(name):
        return "attention"
    if _ADAM.search(name) or name.startswith(_OPTIMIZER):
        return "optimizer"
    return "matmul" if _MATMUL_OPERATOR.search(name.rpartition("::")[2]) else "other"


def _of_gpu(events: Sequence[Event]) -> dict[str, float]:
    """Kernel time by class. Where kernels of two streams overlap, the earlier class has it."""
    in_optimizer: dict[Any, list[Span]] = defaultdict(list)
    for event in events:
        if event["cat"] == "gpu_user_annotation" and event["name"].startswith(_OPTIMIZER):
            in_optimizer[event["tid"]].append(_span(event))
    spans: dict[str, list[Span]] = defaultdict(list)
    for event in events:
        if event["cat"] not in _ON_GPU:
            continue
        kind = class_of_kernel(event["name"])
        optimizer = in_optimizer[event["tid"]]
        if kind != "collectives exposed" and any(a <= event["ts"] < b for a, b in optimizer):
            kind = "optimizer"
        spans[kind].append(_span(event))
    found: dict[str, float] = {}
    taken: list[Span] = []
    # Collectives last: what is left of them is what no kernel hides.
    for kind in ("attention", "matmul", "optimizer", "other", "collectives exposed"):
        before = _length(taken)
        taken = _union([*taken, *spans[kind]])
        found[kind] = _length(taken) - before
    return found


def _of_cpu(events: Sequence[Event]) -> dict[str, float]:
    """Time in the training thread's operators by class."""
    found: dict[str, float] = defaultdict(float)
    for _, kind, taken in _own_times(events):
        found[kind] += taken
    return dict(found)


def _own_times(events: Sequence[Event]) -> list[tuple[str, str, float]]:
    """Name, class and time of each operator of the training thread, without those it calls.

    What runs inside the optimizer or inside attention counts as theirs.
    """
    thread = next(event["tid"] for event in events if event["name"] == STEP)
    wanted = [
        event
        for event in events
        if event["tid"] == thread
        and (event["cat"] == "cpu_op" or event["name"].startswith(_OPTIMIZER))
    ]
    wanted.sort(key=lambda event: (event["ts"], -event["dur"]))
    found: list[tuple[str, str, float]] = []
    open_calls: list[tuple[float, int]] = []  # When an operator ends, and its place in `found`.
    for event in wanted:
        start, end = _span(event)
        while open_calls and open_calls[-1][0] <= start:
            open_calls.pop()
        kind = class_of_operator(event["name"])
        if open_calls:
            outer_end, place = open_calls[-1]
            end = min(end, outer_end)
            name, outer, taken = found[place]
            kind = outer if outer in ("optimizer", "attention") else kind
            found[place] = (name, outer, taken - (end - start))
        open_calls.append((end, len(found)))
        found.append((event["name"], kind, end - start))
    return found


def _span(event: Event) -> Span:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def _union(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _length(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)
