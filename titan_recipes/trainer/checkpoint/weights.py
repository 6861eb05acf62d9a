"""The whole model's weights out of a checkpoint, in one process and without the model.

A LoRA run saves adapters only: its weights are those of its base model, which its job names as
checkpoint.initial_load_path, with the adapters added.
"""

import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job, read_job
from titan_recipes.config.lora import uses_lora
from titan_recipes.errors import CheckpointError, ConfigError, Problem
from titan_recipes.trainer.checkpoint import commit
from titan_recipes.trainer.hf.key_map import our_shapes
from titan_recipes.trainer.hf.weights import ModelWeights
from titan_recipes.trainer.model.lora import adapter_names, is_adapter, merge_lora

PART = "model."
"""What names of weights begin with in a checkpoint of ours."""


@contextmanager
def one_process() -> Generator[None]:
    """One process without a process group is what is meant here; DCP warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        yield


def job_of(stored: commit.Stored) -> Job:
    """The job of the run that a checkpoint lies in. Raises ConfigError where it lies in none."""
    for folder in stored.path.absolute().parents[:3]:
        if (folder / "job.toml").is_file():
            return read_job(folder / "job.toml")
    got = "in no run directory, so nothing says which model it is"
    raise ConfigError([Problem(str(stored.path), "", got, "name the recipe: --recipe NAME")])


class _Committed:
    """The tensors of a checkpoint directory of ours, by our names; read when asked for."""

    def __init__(self, path: Path) -> None:
        known = FileSystemReader(path).read_metadata().state_dict_metadata
        self._path = path
        self._known = {
            name.removeprefix(PART): entry
            for name, entry in known.items()
            if name.startswith(PART) and isinstance(entry, TensorStorageMetadata)
        }
        self.shapes = {name: tuple(entry.size) for name, entry in self._known.items()}

    def dtype(self, name: str) -> torch.dtype:
        return self._known[name].properties.dtype

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        state = {name: torch.empty(self.shapes[name], dtype=self.dtype(name)) for name in names}
        with one_process():
            dcp.load({"model": state}, storage_reader=FileSystemReader(self._path), no_dist=True)
        return state


class StoredWeights:
    """The model's weights by name, of one type each."""

    def __init__(self, job: Job, path: Path) -> None:
        """path: a verified checkpoint of the job's.

        Raises CheckpointError where it, or the base model of its adapters, is of another model.
        """
        self._job = job if uses_lora(job) else None
        self._own = _Committed(path)
        self._base = self._own if self._job is None else _open_base(self._job)
        wanted = {name: tuple(shape) for name, shape in our_shapes(job.model).items()}
        _check(self._base.shapes, wanted, str(path) if self._job is None else "the base model")
        self.names = tuple(wanted)
        if self._job is not None:
            expected = {adapter for name in wanted for adapter in adapter_names(name, self._job)}
            found = {name for name in self._own.shapes if is_adapter(name)}
            if found != expected:
                raise CheckpointError(f"{path}: not the adapters of this job's [lora] settings")

    def dtype(self, name: str) -> torch.dtype:
        """The type that a weight is stored in."""
        return self._base.dtype(name)

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some of the weights, with their adapters added."""
        names = list(names)
        if self._job is None:
            return self._own.load(names)
        # Buffers that training changed are in the run's own checkpoint.
        own = {name for name in names if name in self._own.shapes}
        wanted = [name for name in names if name not in own]
        adapters = [a for name in wanted for a in adapter_names(name, self._job)]
        state = self._base.load(wanted) | self._own.load([*own, *adapters])
        return merge_lora(state, self._job)


def _open_base(job: Job) -> _Committed | ModelWeights:
    place = expanded(job.checkpoint.initial_load_path)
    if job.checkpoint.initial_load_in_hf:
        return ModelWeights(place, job.model)
    for stored in commit.find_checkpoints(place):
        if not commit.verify_checkpoint(stored.path, hash_content=False):
            return _Committed(stored.path)
    got = f"no checkpoint in {place}, which holds the base model of these adapters"
    raise ConfigError([Problem("job.toml", "checkpoint.initial_load_path", got)])


def _check(
    found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], where: str
) -> None:
    problems = [
        f"{name}: {found.get(name, 'missing')} there, {wanted.get(name, 'none')} in the model"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if problems:
        shown = "\n  ".join(problems[:40])
        raise CheckpointError(f"{where} is not of this model:\n  {shown}")
