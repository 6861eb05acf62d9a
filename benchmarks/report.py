"""What the benchmarks share: options, tables, and the end, one line of JSON on the screen.

The JSON says what made it: machine, card, versions, git revision. Where git can't say it (a copy of
the tree), the environment variable REVISION does.
"""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workload import Workload

PACKAGES = ("torch", "torchao", "triton", "liger-kernel", "transformers")


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the option that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="also write the JSON to this file")
    return parser


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """What is trained, for `workload_of`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--flavor", default="debug", help="the recipe is llama3_<flavor>")
    parser.add_argument("--layers", type=int, default=-1, help="-1 = as many as the recipe has")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2, help="sequences in a step")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ac", choices=("none", "full", "selective"), default="none")


def workload_of(arguments: argparse.Namespace, settings: Sequence[str] = ()) -> "Workload":
    """What the options of `add_workload_options` ask for."""
    from workload import Workload

    return Workload(
        flavor=arguments.flavor,
        n_layers=arguments.layers,
        seq_len=arguments.seq_len,
        batch=arguments.batch,
        precision=arguments.precision,
        enable_compile=arguments.compile,
        ac=arguments.ac,
        device=arguments.device,
        settings=tuple(settings),
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heads, *rows)
    ]


def revision() -> str:
    """What is measured: `git describe`, "-dirty" where files differ from it."""
    if named := os.environ.get("REVISION"):
        return named
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except OSError:
        return ""


def versions() -> dict[str, str]:
    """Package -> version, of those that decide speed and are installed."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def card() -> str:
    """The GPU's name and driver, or the CPU's name where there is no GPU."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")
        return lines[0]
    except (OSError, subprocess.CalledProcessError):
        described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def finish(name: str, figures: dict[str, Any], write: Path | None) -> None:
    """Print the figures with machine, versions and git revision as the last line."""
    machine = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "card": card(),
        "cores": os.cpu_count(),
        "installed": versions(),
        "revision": revision(),
    }
    row = {"benchmark": name, **figures, **machine}
    if write is not None:
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(json.dumps(row, indent=2) + "\n")
    print(json.dumps(row))
