"""What a simulation found, as tables for people and as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from titan_recipes.config.hardware import GPUS
from titan_recipes.config.job import Job
from titan_recipes.trainer.parallel.mesh import World
from titan_recipes.trainer.simulate.measure import Measured

LOWEST_RESERVE, HIGHEST_RESERVE = 1.1, 1.25
"""What CUDA's allocator reserves, over what is alive: seen in published runs of torchtitan (its
benchmarks/llama3_h100_202412_torchtitan.md) against simulations of the same layouts."""


@dataclass(frozen=True, slots=True)
class RankReport:
    """One simulated rank. seconds: that the simulation took."""

    rank: int
    place: dict[str, int]
    measured: Measured
    seconds: float


def place_of(world: World) -> dict[str, int]:
    """A rank's number on each axis that has more than one."""
    if world.data_mesh is None:
        return {}
    return {
        axis: world.data_mesh.get_local_rank(axis)
        for axis in world.data_mesh.mesh_dim_names or ()
        if world.data_mesh[axis].size() > 1
    }


def verdict(job: Job, report: RankReport) -> str:
    """Whether the rank fits: "yes", "maybe", "no", or "unknown" without a GPU from the table."""
    if job.plan.gpu not in GPUS:
        return "unknown"
    memory = GPUS[job.plan.gpu].memory_gib
    peak = _highest(report) / 2**30
    if peak * HIGHEST_RESERVE <= memory:
        return "yes"
    return "maybe" if peak * LOWEST_RESERVE <= memory else "no"


def as_json(job: Job, reports: Sequence[RankReport]) -> dict[str, Any]:
    """Sizes in bytes."""
    gpu = GPUS.get(job.plan.gpu)
    return {
        "recipe": job.recipe_id,
        "plan": job.origin.plan,
        "world_size": job.derived.world_size,
        "gpu": job.plan.gpu,
        "gpu_memory_gib": gpu.memory_gib if gpu else None,
        "ranks": [
            {
                "rank": report.rank,
                "place": report.place,
                "fits": verdict(job, report),
                "peak_bytes": report.measured.steady.size,
                "memory_bytes": report.measured.steady.parts,
                "first_step_peak_bytes": report.measured.start.size,
                "host_bytes": report.measured.host.size,
                "collectives": [
                    {"op": kind.op, "axis": kind.axis, "count": t.count, "bytes": t.size}
                    for kind, t in report.measured.collectives.items()
                ],
                "seconds": round(report.seconds, 1),
            }
            for report in reports
        ],
    }


def as_text(job: Job, reports: Sequence[RankReport]) -> str:
    """The tables, and what to make of them."""
    passes = job.derived.gradient_accumulation_steps
    lines = [
        f"{job.recipe_id}, plan {job.origin.plan}: {job.derived.world_size} x {job.plan.gpu}",
        "",
        "memory at the peak of a steady step",
        *_memory_lines(reports),
        "",
        *(_judgement(job, report) for report in reports),
        "",
        f"collectives of a steady step of {passes} {'passes' if passes > 1 else 'pass'}",
        *_traffic_lines(reports),
    ]
    return "\n".join(lines)


def _memory_lines(reports: Sequence[RankReport]) -> list[str]:
    found = [report.measured for report in reports]
    unit, size = _unit(max(m.steady.size for m in found))
    rows = [[unit, *(_title(report) for report in reports)]]
    for name in found[0].steady.parts:
        rows.append([name, *(size(m.steady.parts[name]) for m in found)])
    rows.append(["peak", *(size(m.steady.size) for m in found)])
    rows.append(["peak of start and first step", *(size(m.start.size) for m in found)])
    if any(m.host.size for m in found):
        rows.append(["in host memory", *(size(m.host.size) for m in found)])
    return _aligned(rows, texts=1)


def _title(report: RankReport) -> str:
    place = [f"{axis} {at}" for axis, at in report.place.items()]
    return f"rank {report.rank} ({', '.join(place)})" if place else f"rank {report.rank}"


def _judgement(job: Job, report: RankReport) -> str:
    gpu = GPUS.get(job.plan.gpu)
    highest = _highest(report)
    unit, size = _unit(highest)
    low, high = (size(round(highest * factor)) for factor in (LOWEST_RESERVE, HIGHEST_RESERVE))
    said = f"{size(highest)} {unit} in use, about {low} to {high} with the allocator's reserve"
    if gpu is None:
        return f"rank {report.rank}: {said} on a GPU"
    words = {"yes": "fits", "maybe": "may or may not fit", "no": "does not fit"}
    return (
        f"rank {report.rank} {words[verdict(job, report)]} into the {gpu.memory_gib:g} GiB of "
        f"{job.plan.gpu}: {said}"
    )


def _highest(report: RankReport) -> int:
    return max(report.measured.steady.size, report.measured.start.size)


def _traffic_lines(reports: Sequence[RankReport]) -> list[str]:
    traffic = [(r.rank, kind, t) for r in reports for kind, t in r.measured.collectives.items()]
    if not traffic:
        return ["none: one process"]
    unit, size = _unit(max(t.size for _, _, t in traffic))
    rows = [["rank", "operation", "axis", "count", unit]]
    rows += [[str(rank), k.op, k.axis, f"{t.count:,}", size(t.size)] for rank, k, t in traffic]
    return _aligned(rows, texts=3)


def _unit(largest: int) -> tuple[str, Callable[[int], str]]:
    """GiB, or MiB where there is less than one, and how to write a size in it."""
    name, scale = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    return name, lambda num_bytes: f"{num_bytes / scale:,.2f}"


def _aligned(rows: list[list[str]], *, texts: int) -> list[str]:
    """Rows as lines; the first `texts` columns flush left, the numbers behind them right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
