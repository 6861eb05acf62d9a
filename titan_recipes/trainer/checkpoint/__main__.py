"""`python -m titan_recipes.trainer.checkpoint list|verify|import|export`: checkpoints by hand.

`list` compares presence and size only, `verify` reads and hashes every byte; neither needs torch.
`import` and `export` convert from and to Hugging Face's safetensors. Exit codes: 0 all good, 2 no
checkpoints there or another mistake of the user's, 3 a bad checkpoint.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from titan_recipes.errors import (
    EXIT_DONE,
    EXIT_FAULT,
    CheckpointError,
    ConfigError,
    Problem,
    TitanRecipesError,
)
from titan_recipes.trainer.checkpoint import commit
from titan_recipes.trainer.checkpoint.commit import Stored
from titan_recipes.trainer.verb import tell

_UNITS = {"MB": 10**6, "GB": 10**9}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "import":
            return _import(options)
        if options.verb == "export":
            return _export(options)
        return _look(options)
    except TitanRecipesError as error:
        return tell(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="titan-recipes checkpoint", description="Look at checkpoints, and convert them."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("list", "verify"):
        look = verbs.add_parser(verb)
        look.add_argument(
            "directory", type=Path, help="run directory, checkpoints folder or one checkpoint"
        )
        look.add_argument("--json", action="store_true", help="one JSON array, no table")
    into = verbs.add_parser("import")
    into.add_argument("--job", required=True, help="as titan_recipes.config.job.encode writes it")
    into.add_argument("--from", dest="source", type=Path, required=True)
    into.add_argument("-o", "--output", type=Path, required=True)
    out = verbs.add_parser("export")
    out.add_argument("directory", type=Path)
    out.add_argument("--job", default="", help="default: job.toml of the checkpoint's run")
    out.add_argument("-o", "--output", type=Path, required=True)
    out.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    out.add_argument("--max-shard-size", type=_size, default=5 * 10**9)
    return parser


def _size(text: str) -> int:
    """Bytes of "5GB" or "500MB"."""
    match = re.fullmatch(r"(\d+)\s*([MG]B)", text.upper())
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB or 500MB")
    return int(match[1]) * _UNITS[match[2]]


# --- list, verify -----------------------------------------------------------------------------


def _look(options: argparse.Namespace) -> int:
    try:
        found = commit.find_checkpoints(options.directory)
    except CheckpointError as error:
        raise ConfigError([Problem(str(options.directory), "", str(error))]) from error
    if not found:
        raise ConfigError([Problem(str(options.directory), "", "no checkpoints here")])
    rows = [_row(stored, hash_content=options.verb == "verify") for stored in found]
    print(json.dumps(rows, indent=2) if options.json else _table(rows))
    bad = any(row["problems"] for row in rows)
    return EXIT_FAULT if bad and options.verb == "verify" else EXIT_DONE


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


# --- import, export ---------------------------------------------------------------------------


def _import(options: argparse.Namespace) -> int:
    from titan_recipes.config.job import decode
    from titan_recipes.trainer.hf.convert import import_checkpoint

    job = decode(options.job)
    path, ignored = import_checkpoint(job.model, options.source, options.output)
    if ignored:
        print(f"left out, as the model has no use for it: {', '.join(ignored)}")
    print(f"imported {job.derived.num_params:,} parameters into {path}")
    print(f"train from it: --set 'checkpoint.initial_load_path=\"{options.output.absolute()}\"'")
    return EXIT_DONE


def _export(options: argparse.Namespace) -> int:
    import torch

    from titan_recipes.config.job import decode
    from titan_recipes.trainer.checkpoint.weights import job_of
    from titan_recipes.trainer.hf.convert import export_checkpoint, newest_checkpoint

    stored = newest_checkpoint(options.directory)
    job = decode(options.job) if options.job else job_of(stored)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    size, notes = export_checkpoint(
        job, stored, options.output, dtype=dtype, max_shard_bytes=options.max_shard_size
    )
    for note in notes:
        print(note)
    print(f"exported {stored.path} (step {stored.step}, {size / 1e9:,.2f} GB) to {options.output}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
