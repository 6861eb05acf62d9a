"""The whole model's weights out of a checkpoint, in one process and without the model.

A LoRA run saves adapters only: its weights are those of its base model, which its job names as
checkpoint.initial_load_path, with the adapters added.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from titan_recipes.config.home import expanded
from titan_recipes.config.job import Job
from titan_recipes.config.lora import uses_lora
from titan_recipes.config.schema import Model
from titan_recipes.errors import CheckpointError, ConfigError, Problem
from titan_recipes.trainer.checkpoint import commit
from titan_recipes.trainer.hf.config import check_config
from titan_recipes.trainer.hf.key_map import key_map, our_shapes
from titan_recipes.trainer.hf.weights import Weights
from titan_recipes.trainer.model.lora import adapter_names, is_adapter, merge_lora

PART = "model."
"""What names of weights begin with in a checkpoint of ours."""


class _Tensors(Protocol):
    """Tensors by our names; read when asked for."""

    shapes: dict[str, tuple[int, ...]]

    def dtype(self, name: str) -> torch.dtype: ...

    def load(self, names: Iterable[str]) -> dict[str, Tensor]: ...


class _Committed:
    """Those of a checkpoint directory of ours."""

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
        with warnings.catch_warnings():
            # One process without a process group is what is meant here.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
            dcp.load({"model": state}, storage_reader=FileSystemReader(self._path), no_dist=True)
        return state


class _Published:
    """Those of a folder of Hugging Face safetensors."""

    def __init__(self, folder: Path, job: Job) -> None:
        check_config(folder, job.model)
        self._weights, self._keys = Weights(folder), key_map(job.model)
        self._weights.check(job.model)
        self.shapes = {name: tuple(shape) for name, shape in our_shapes(job.model).items()}

    def dtype(self, name: str) -> torch.dtype:
        parts = self._keys[name]
        return self._weights.dtype(parts[0].name) if parts else torch.float32

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> Tensor:
        if not self._keys[name]:
            return torch.zeros(self.shapes[name])
        whole = tuple(slice(0, size) for size in self.shapes[name])
        return self._weights.read_ours(self._keys[name], whole)


class StoredWeights:
    """The model's weights by name, of one type each."""

    def __init__(self, sizes: Model, path: Path, job: Job | None = None) -> None:
        """path: a verified checkpoint. job: whose it is, which a LoRA run's is not read without.

        Raises CheckpointError where it, or the base model of its adapters, is of another model.
        """
        self._job = job if job is not None and uses_lora(job) else None
        self._own = _Committed(path)
        self._base: _Tensors = self._own if self._job is None else _open_base(self._job)
        wanted = {name: tuple(shape) for name, shape in our_shapes(sizes).items()}
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


def _open_base(job: Job) -> _Tensors:
    place = expanded(job.checkpoint.initial_load_path)
    if job.checkpoint.initial_load_in_hf:
        return _Published(place, job)
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
