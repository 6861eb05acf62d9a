"""The end of every benchmark: one line of JSON on the screen and, if asked, in a file."""

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the option that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="also write the JSON to this file")
    return parser


def finish(name: str, figures: dict[str, Any], write: Path | None) -> None:
    """Print the figures with machine, versions and git revision as the last line."""
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    ).stdout.strip()
    machine = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "revision": revision,
    }
    row = {"benchmark": name, **figures, **machine}
    if write is not None:
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(json.dumps(row, indent=2) + "\n")
    print(json.dumps(row))
