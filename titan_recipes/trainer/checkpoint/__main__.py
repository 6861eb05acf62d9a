"""`python -m titan_recipes.trainer.checkpoint list|verify DIR`: look at checkpoints. No torch.

`list` compares presence and size only, `verify` reads and hashes every byte. Exit codes: 0 all
good, 2 no checkpoints in DIR, 3 `verify` found a bad one.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from titan_recipes.errors import EXIT_DONE, EXIT_FAULT, EXIT_USER, CheckpointError
from titan_recipes.trainer.checkpoint import commit
from titan_recipes.trainer.checkpoint.commit import Stored


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="titan-recipes checkpoint", description="Look at a run's checkpoints."
    )
    parser.add_argument("verb", choices=("list", "verify"))
    parser.add_argument(
        "directory", type=Path, help="run directory, checkpoints folder or one checkpoint"
    )
    parser.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    options = parser.parse_args(arguments)

    try:
        found = commit.find_checkpoints(options.directory)
    except CheckpointError as error:
        return _refuse(f"{options.directory}: {error}")
    if not found:
        return _refuse(f"{options.directory}: no checkpoints here")
    rows = [_row(stored, hash_content=options.verb == "verify") for stored in found]
    print(json.dumps(rows, indent=2) if options.json else _table(rows))
    bad = any(row["problems"] for row in rows)
    return EXIT_FAULT if bad and options.verb == "verify" else EXIT_DONE


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USER


def _row(stored: Stored, *, hash_content: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"step": stored.step, "path": str(stored.path)}
    try:
        manifest = commit.read_manifest(stored.path)
        row |= {
            "bytes": manifest.size,
            "world_size": manifest.world_size,
            "model_only": manifest.model_only,
            "created": manifest.created,
        }
    except CheckpointError:
        row |= {"bytes": None, "world_size": None, "model_only": None, "created": None}
    row["problems"] = commit.verify_checkpoint(stored.path, hash_content=hash_content)
    row["valid"] = not row["problems"]
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'STEP':>8}  {'SIZE':>10}  {'RANKS':>5}  {'DATE':<25}  STATE"]
    for row in rows:
        size = "-" if row["bytes"] is None else f"{row['bytes'] / 2**20:,.1f} MiB"
        good = "ok, weights only" if row["model_only"] else "ok"
        lines.append(
            f"{row['step']:>8}  {size:>10}  {row['world_size'] or '-':>5}  "
            f"{row['created'] or '-':<25}  {good if row['valid'] else 'BAD'}"
        )
        lines += [f"{'':>10}{problem}" for problem in row["problems"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
