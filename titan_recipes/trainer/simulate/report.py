"""What a simulation found, as tables for people and as JSON."""

from collections.abc import Sequence
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
    peak = _gib(_highest(report))
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
    lines = [
        f"{job.recipe_id}, plan {job.origin.plan}: {job.derived.world_size} x {job.plan.gpu}",
        "",
        f"Memory at the peak of a steady step, GiB ({2**30:,} bytes)",
    ]
    lines += _aligned([["rank", *_titles(reports)], *_memory_rows(reports)])
    lines += ["", *(_judgement(job, report) for report in reports), ""]
    passes = job.derived.gradient_accumulation_steps
    lines.append(f"Collectives of a steady step (passes: {passes}), each rank's own")
    lines += _aligned([["rank", "op", "axis", "count", "GiB"], *_traffic_rows(reports)])
    return "\n".join(lines)


def _titles(reports: Sequence[RankReport]) -> list[str]:
    return [_title(report) for report in reports]


def _title(report: RankReport) -> str:
    place = [f"{axis} {at}" for axis, at in report.place.items()]
    return f"{report.rank} ({', '.join(place)})" if place else str(report.rank)


def _memory_rows(reports: Sequence[RankReport]) -> list[list[str]]:
    names = list(reports[0].measured.steady.parts)
    rows = [
        [name, *(f"{_gib(r.measured.steady.parts[name]):.2f}" for r in reports)] for name in names
    ]
    rows.append(["peak", *(f"{_gib(r.measured.steady.size):.2f}" for r in reports)])
    rows.append(
        ["peak of start and first step", *(f"{_gib(r.measured.start.size):.2f}" for r in reports)]
    )
    if any(r.measured.host.size for r in reports):
        rows.append(["in host memory", *(f"{_gib(r.measured.host.size):.2f}" for r in reports)])
    return rows


def _judgement(job: Job, report: RankReport) -> str:
    peak = _gib(_highest(report))
    low, high = peak * LOWEST_RESERVE, peak * HIGHEST_RESERVE
    reserve = f"{peak:.2f} GiB alive; with the allocator's reserve about {low:.1f} to {high:.1f}"
    gpu = GPUS.get(job.plan.gpu)
    if gpu is None:
        return f"rank {report.rank}: {reserve} GiB on a GPU"
    words = {"yes": "fits", "maybe": "may or may not fit", "no": "does not fit"}
    answer = words[verdict(job, report)]
    return f"rank {report.rank} {answer} {job.plan.gpu} ({gpu.memory_gib:g} GiB): {reserve} GiB"


def _highest(report: RankReport) -> int:
    return max(report.measured.steady.size, report.measured.start.size)


def _traffic_rows(reports: Sequence[RankReport]) -> list[list[str]]:
    rows = [
        [str(report.rank), kind.op, kind.axis, f"{t.count:,}", f"{_gib(t.size):,.3f}"]
        for report in reports
        for kind, t in report.measured.collectives.items()
    ]
    return rows or [["none"] + ["-"] * 4]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines; all columns but the first are flush right, names in a second too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if _is_number(cell) else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").isdigit()


def _gib(num_bytes: int) -> float:
    return num_bytes / 2**30
