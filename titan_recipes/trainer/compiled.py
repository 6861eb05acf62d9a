"""What torch.compile made: kept from run to run, and told where a step compiles again.

Imports torch's compiler only where a job compiles.
"""

import os
from pathlib import Path

from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job
from titan_recipes.trainer.data.places import cache_directory


def keep_compiled(job: Job) -> None:
    """Have torch keep compiled code where the next run finds it, unless the environment says where.

    Call it before anything is compiled. On many nodes a shared folder spares all but one the work.
    """
    if not job.compile.enable:
        return
    folder = Path(job.compile.cache_dir or cache_directory(job) / "compile")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(expanded(folder)))


class Compilations:
    """Counts the graphs that torch compiles."""

    def __init__(self, job: Job) -> None:
        self._enabled = job.compile.enable
        self._seen = 0

    def new(self) -> int:
        """Graphs compiled since the last call."""
        if not self._enabled:
            return 0
        from torch._dynamo.utils import counters

        before, self._seen = self._seen, counters["stats"]["unique_graphs"]
        return self._seen - before
