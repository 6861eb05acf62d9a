"""The parity matrix: every layout, every family, equal to one process over 20 steps.

`make test` runs the fast cases, `make parity` all of them, and writes what it saw as a table. A
start of torchrun trains all cases of its number of ranks.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from layouts import Case, cases, one_process
from parity import difference, train_all

from titan_recipes.config.job import Job

CASES_A_START = {2: 8, 4: 8, 8: 2}
"""By ranks: process groups pile up from case to case, and with them gloo's threads, which slow down
all."""


def batches(jobs: list[tuple[str, Job]], size: int) -> Iterator[list[tuple[str, Job]]]:
    """The jobs of one start after the other."""
    for first in range(0, len(jobs), size):
        yield jobs[first : first + size]


def largest_differences(chosen: list[Case], root: Path, corpus: Path) -> dict[Case, float]:
    """Train the cases, and one process for each of their families; compare each with it."""
    families = sorted({case.family for case in chosen})
    train_all(root, {family: one_process(family, corpus) for family in families})
    by_ranks: dict[int, dict[str, Job]] = defaultdict(dict)
    for case in chosen:
        by_ranks[case.layout.ranks][case.directory] = case.job(corpus)
    for ranks, jobs in sorted(by_ranks.items()):
        for some in batches(list(jobs.items()), CASES_A_START[ranks]):
            started = time.monotonic()
            train_all(root, dict(some), timeout=120 + 90 * len(some))
            seconds = time.monotonic() - started
            print(f"{len(some)} cases on {ranks} ranks: {seconds:.0f} s", flush=True)
    return {case: difference(root / case.family, root / case.directory) for case in chosen}


def refuse_larger(found: dict[Case, float]) -> None:
    """Fail with every case whose difference is above its bound."""
    bad = {case: worst for case, worst in found.items() if not worst <= case.layout.bound}
    assert not bad, "\n".join(
        f"{case.family}, {case.name}: {worst:.1e} > {case.layout.bound:.0e}"
        for case, worst in bad.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_fast_layouts_equal_one_process(tmp_path: Path, corpus: Path, ranks: int) -> None:
    chosen = [case for case in cases() if case.layout.fast and case.layout.ranks == ranks]
    assert chosen
    refuse_larger(largest_differences(chosen, tmp_path, corpus))


@pytest.mark.parity
def test_every_layout_and_family_equals_one_process(tmp_path: Path, corpus: Path) -> None:
    found = largest_differences(list(cases()), tmp_path, corpus)
    if report := os.environ.get("PARITY_REPORT"):
        Path(report).write_text(table(found))
    refuse_larger(found)


def table(found: dict[Case, float]) -> str:
    """What was seen, as Markdown: a row for each layout and family."""
    import platform

    import torch

    lines = [
        "# Parity with one process",
        "",
        "Loss and gradient norm of a tiny model of each family, float32, 20 steps of two passes, "
        "on CPU and gloo: the largest relative difference to one process at any step.",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}; "
        "written by `make parity`.",
        "",
        "| family | layout | ranks | largest difference | bound |",
        "|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {case.family} | {case.name} | {case.layout.ranks} | {worst:.1e} | "
        f"{case.layout.bound:.0e} |"
        for case, worst in found.items()
    ]
    return "\n".join(lines) + "\n"
