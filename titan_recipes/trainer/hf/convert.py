"""A folder of safetensors <-> a checkpoint of ours, in one process and without a model.

Either way one tensor is in memory at a time (a file's worth on export), so that a laptop converts
what no GPU of its own could hold.
"""

import json
import shutil
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex

from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.schema import Model
from titan_recipes.errors import CheckpointError, ConfigError, Problem
from titan_recipes.trainer.checkpoint import commit
from titan_recipes.trainer.checkpoint.commit import Stored
from titan_recipes.trainer.checkpoint.weights import PART, StoredWeights, one_process
from titan_recipes.trainer.checkpoint.writer import CommittingWriter
from titan_recipes.trainer.hf.assets import GENERATION_CONFIG, find_beside
from titan_recipes.trainer.hf.config import CONFIG, config_of
from titan_recipes.trainer.hf.key_map import KeyMap, Part, key_map, our_shapes
from titan_recipes.trainer.hf.weights import INDEX, SINGLE, ModelWeights

LINE_SECONDS = 5.0
MAX_SHARD_BYTES = 5 * 10**9


class Progress:
    """A line on stderr now and then: bytes done of all, and how fast."""

    def __init__(self, verb: str, total: int) -> None:
        self._verb, self._total, self._done = verb, total, 0
        self._start = self._last = time.monotonic()

    def add(self, num_bytes: int) -> None:
        """Count what was done since the last call."""
        self._done += num_bytes
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS or self._done == self._total:
            self._last = now
            speed = self._done / max(now - self._start, 1e-9) / 1e6
            gigabytes = f"{self._done / 1e9:,.2f} of {self._total / 1e9:,.2f} GB"
            print(f"{self._verb}: {gigabytes}, {speed:,.0f} MB/s", file=sys.stderr, flush=True)


@contextmanager
def _appearing(output: Path) -> Generator[Path]:
    """A scratch folder that becomes `output` at the end, complete, or goes. Raises ConfigError."""
    if output.exists():
        raise ConfigError([Problem(str(output), "", "exists already", "name a new folder")])
    scratch = output.with_name(f".{output.name}.saving")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(output)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


# --- import -----------------------------------------------------------------------------------


def import_checkpoint(sizes: Model, source: Path, output: Path) -> tuple[Path, list[str]]:
    """Write the weights in `source` as checkpoint step-00000000 below `output`, types unchanged.

    Returns its path, and the names of stored tensors that were left out. Raises ConfigError where
    `source` holds another model or `output` is there already, CheckpointError for bad tensors.
    """
    weights = ModelWeights(source, sizes)
    content = {
        name: torch.empty(shape, dtype=weights.dtype(name), device="meta")
        for name, shape in weights.shapes.items()
    }
    progress = Progress("importing", sum(tensor.nbytes for tensor in content.values()))
    planner = _ReadingPlanner(weights, progress)
    with _appearing(output) as folder, one_process():
        writer = CommittingWriter(
            folder, step=0, world_size=1, model_only=True, on_commit=lambda manifest: None
        )
        dcp.save({"model": content}, storage_writer=writer, planner=planner, no_dist=True)
    return commit.checkpoint_path(output, 0), weights.ignored


class _ReadingPlanner(DefaultSavePlanner):
    """Reads a tensor when its turn to be written has come; the state dict holds shapes only."""

    def __init__(self, weights: ModelWeights, progress: Progress) -> None:
        super().__init__()
        self.weights, self.progress = weights, progress

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        self.progress.add(super().lookup_object(index).nbytes)
        return self.weights.read(index.fqn.removeprefix(PART)).contiguous()


# --- export -----------------------------------------------------------------------------------


def newest_checkpoint(path: Path) -> Stored:
    """The checkpoint meant by a path: itself, or the newest good one of a run or folder."""
    found = commit.find_checkpoints(path)
    if not found:
        raise ConfigError([Problem(str(path), "", "no checkpoints here")])
    reasons: list[str] = []
    for stored in found:
        problems = commit.verify_checkpoint(stored.path)
        if not problems:
            return stored
        reasons.append(f"{stored.path}: {'; '.join(problems)}")
    raise CheckpointError("no checkpoint that can be exported:\n  " + "\n  ".join(reasons))


def export_last(job: Job, layout: RunLayout, step: int) -> str:
    """Export a run's last checkpoint beside it, if it is there; returns what to say of it."""
    config = job.checkpoint
    path = commit.checkpoint_path(layout.root / config.folder, step)
    output = path.with_name(f"{path.name}-hf")
    if output.exists() or not path.exists() or not (config.enable and config.last_save_model_only):
        return f"no export to {output.name}: it is there, or the last checkpoint is not"
    _, notes = export_checkpoint(job, Stored(step, path), output)
    return "; ".join([f"exported the last checkpoint to {output}", *notes])


def export_checkpoint(
    job: Job,
    stored: Stored,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> tuple[int, list[str]]:
    """Write a verified checkpoint of a job of ours as folder `output`, with what belongs beside it.

    A LoRA job's adapters are added to its base model. Returns the bytes of the weights, and lines
    on what is missing beside them.
    dtype: of every weight; None = as they are in the checkpoint (a selection bias stays float32).
    Raises ConfigError where `output` is there already or the family can't say what the model is,
    CheckpointError where the checkpoint is of another model.
    """
    sizes, beside = job.model, find_beside(job)
    config = beside.config | config_of(sizes)
    weights = StoredWeights(job, stored.path)
    shapes = our_shapes(sizes)
    there = {name: weights.dtype(name) for name in shapes}
    keys = key_map(sizes)
    unsaid = [name for name, parts in keys.items() if not parts]
    if lost := [name for name, value in weights.load(unsaid).items() if value.any()]:
        cure = f"{config['architectures'][0]} has no selection bias; balance by aux_loss_weight"
        raise ConfigError([Problem(str(stored.path), lost[0], "is not zero", cure)])
    sources = _sources(sizes, keys)
    layout: dict[str, Tensor] = {}
    for name, parts in sources.items():
        ours, part = parts[0]
        kept = dtype is None or ours.endswith("selection_bias")
        layout[name] = torch.empty(
            part.stored_shape(shapes[ours]), dtype=there[ours] if kept else dtype, device="meta"
        )
    total = sum(tensor.nbytes for tensor in layout.values())
    progress = Progress("exporting", total)
    weight_map: dict[str, str] = {}
    with _appearing(output) as folder:
        for file, names in _files(layout, max_shard_bytes):
            state = weights.load({ours for name in names for ours, _ in sources[name]})
            tensors = {name: _assembled(layout[name], sources[name], state) for name in names}
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
            progress.add(sum(tensor.nbytes for tensor in tensors.values()))
        if len({*weight_map.values()}) > 1:
            _write_json(
                folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}
            )
        main = layout["model.embed_tokens.weight"].dtype
        _write_json(folder / CONFIG, config | {"torch_dtype": str(main).removeprefix("torch.")})
        _write_json(folder / GENERATION_CONFIG, beside.generation)
        for file in beside.files:
            shutil.copyfile(file, folder / file.name)
    return total, beside.notes


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sources(sizes: Model, keys: KeyMap) -> dict[str, list[tuple[str, Part]]]:
    """Hugging Face name -> the tensors of ours that it is made of, each with how."""
    sources: dict[str, list[tuple[str, Part]]] = {}
    for name, parts in keys.items():
        if name == "output.weight" and sizes.tie_embeddings:
            continue
        for part in parts:
            sources.setdefault(part.name, []).append((name, part))
    return sources


def _files(layout: dict[str, Tensor], max_bytes: int) -> Iterator[tuple[str, list[str]]]:
    """File name and the tensors in it, in order, each file filled up to max_bytes."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in layout.items():
        if groups[-1] and size + tensor.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    for number, names in enumerate(groups, start=1):
        numbered = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        yield SINGLE if len(groups) == 1 else numbered, names


def _assembled(like: Tensor, parts: Iterable[tuple[str, Part]], state: dict[str, Tensor]) -> Tensor:
    made = torch.empty_like(like, device="cpu")
    for name, part in parts:
        part.put(state[name], made)
    return made
