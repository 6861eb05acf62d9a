"""`python -m titan_recipes.trainer.data prepare --job TEXT`: tokenize what a job reads."""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from titan_recipes.config.job import decode
from titan_recipes.errors import TitanRecipesError
from titan_recipes.trainer.data.prepare import ensure_prepared
from titan_recipes.trainer.data.shards import TokenShards
from titan_recipes.trainer.verb import tell

PATHS_WHOLE = 1000
"""Columns that the table may take: paths are to be copied, so none is cut or wrapped."""


def _prepare(text: str) -> None:
    prepared = ensure_prepared(decode(text))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("dataset", "files", "documents", "tokens", "MB", "where"):
        table.add_column(
            name, justify="left" if name in ("dataset", "where") else "right", no_wrap=True
        )
    paths = [*prepared.training, *([prepared.validation] if prepared.validation else [])]
    for path in paths:
        shards = TokenShards(path)
        numbers = (shards.about["num_files"], shards.num_documents, shards.num_tokens)
        megabytes = f"{shards.num_bytes / 1e6:,.1f}"
        cells = (shards.about["dataset"], *(f"{n:,}" for n in numbers), megabytes, str(path))
        table.add_row(*cells)
    Console(width=PATHS_WHOLE).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m titan_recipes.trainer.data", description=__doc__
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    prepare = verbs.add_parser("prepare", help="tokenize the job's training and validation text")
    prepare.add_argument("--job", required=True, help="the job, as titan_recipes.config.job.encode")
    arguments = parser.parse_args()
    try:
        _prepare(arguments.job)
    except TitanRecipesError as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
