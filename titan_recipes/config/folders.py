"""The folders a run writes into: each inside the run directory, none in another file's place."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from titan_recipes.config.layout import RunLayout
from titan_recipes.config.schema import Config
from titan_recipes.errors import Problem

FOLDERS = (
    "checkpoint.folder",
    "metrics.save_tb_folder",
    "profiling.save_traces_folder",
    "profiling.save_memory_snapshot_folder",
    "comm.save_traces_folder",
)
PREFIX = "comm.save_traces_file_prefix"

_RUN = RunLayout(Path())
TAKEN = {
    str(path)
    for path in (
        _RUN.job, _RUN.record, _RUN.component, _RUN.metrics, _RUN.validation, _RUN.logs,
        _RUN.attempts, _RUN.stop, _RUN.requeue,
    )
}  # fmt: skip
"""What else is in a run directory: a checkpoint folder named STOP would stop the run."""


def folder_problems(config: Config, where_of: Callable[[str], str]) -> Iterator[Problem]:
    """Every folder that is not below the run directory, or in the way of what is there."""
    for key in FOLDERS:
        section, name = key.split(".")
        text: str = getattr(getattr(config, section), name)
        path = PurePosixPath(text)
        got = f'got "{text}"'
        if not path.parts or path.is_absolute() or ".." in path.parts or text[0] == "~":
            cure = "must be a folder below the run directory; --outputs says where runs are"
            yield Problem(where_of(key), key, got, cure)
        elif path.parts[0] in TAKEN and section != "profiling":  # those are below profiles/
            yield Problem(where_of(key), key, got, "the run has a file of its own there")
        elif "\0" in text:
            yield Problem(where_of(key), key, ascii(got), "no file name can hold NUL")
    prefix = config.comm.save_traces_file_prefix
    if "/" in prefix or "\0" in prefix:
        yield Problem(where_of(PREFIX), PREFIX, ascii(prefix), "must be the start of a file name")
