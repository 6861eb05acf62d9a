"""Save and load the training state: `Checkpointer`.

The state is a dict of parts. "model" and "optimizer" are flat dicts, name -> tensor or DTensor,
that DCP stores shard by shard, so that any layout can load what any other saved. Every other part
("lr_scheduler", "dataloader", "rng", "progress") is small: each of its entries is pickled whole.
"rng" belongs to a rank and is stored once per rank; of all else, entries of the same name are equal
on all ranks and stored once.

All ranks decide alike: rank 0 lists the candidates, each rank hashes its share of the files, and
the findings are exchanged before anyone moves. Everything between ranks runs on a gloo group of
its own, so an asynchronous save never meets the training's collectives.
"""

import errno
import io
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from titan_recipes.config.home import expanded
from titan_recipes.config.schema import Checkpoint, Model
from titan_recipes.errors import CheckpointError, ConfigError, Problem
from titan_recipes.trainer.checkpoint import commit
from titan_recipes.trainer.checkpoint.commit import Manifest, Stored
from titan_recipes.trainer.checkpoint.writer import CommittingWriter
from titan_recipes.trainer.hf.load import load_into

State = dict[str, Any]
T = TypeVar("T")

_TENSOR_PARTS = ("model", "optimizer")
# What a retry would meet again: no space, no quota, a size limit, read-only, no permission.
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class Checkpointer:
    """Saves into and loads from one run's checkpoints folder. Collective: every rank makes one.

    log: prints a line for people; called on rank 0 only, from the save's thread too. sizes: the
    model, which only checkpoint.initial_load_in_hf needs to know.
    """

    def __init__(
        self,
        config: Checkpoint,
        folder: Path,
        *,
        log: Callable[[str], None],
        sizes: Model | None = None,
    ) -> None:
        self.config, self.sizes = config, sizes
        self.folder = folder
        self.distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.distributed else 0
        self.world_size = dist.get_world_size() if self.distributed else 1
        group = dist.new_group(backend="gloo") if self.distributed else None
        assert not isinstance(group, int), "every rank is in the group"
        self.group = group
        self._print = log
        self._in_flight: tuple[int, Future[Any]] | None = None
        # (step, model_only) of the last one loaded or saved.
        self._held: tuple[int, bool] | None = None
        self._stager: DefaultStager | None = None
        # The step that training went on from; what lies past it is set aside by the next save.
        self._left_behind: int | None = None
        # One process without a process group is a layout like any other here.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        if not config.load_only:
            for name in self._on_rank_0(lambda: commit.remove_leftovers(folder)):
                self._log(f"checkpoint: removed {name}, a save that was cut off")

    # --- save -------------------------------------------------------------------------------

    def save(self, step: int, state: State, *, model_only: bool = False) -> None:
        """Save and commit a checkpoint of `step`, the number of optimizer steps done.

        With checkpoint.async_mode the state is copied before this returns, and written meanwhile;
        a save still under way is waited for, and its failure is raised here.
        model_only: just the weights, cast to checkpoint.export_dtype. A step just loaded or saved
        is not saved again. Raises CheckpointError where the disk is full or not writable,
        RuntimeError otherwise.
        """
        self.wait()
        if self.config.load_only or self._held == (step, model_only):
            return
        self._set_aside()
        started = time.perf_counter()

        def on_commit(manifest: Manifest) -> None:
            seconds, mib = time.perf_counter() - started, manifest.size / 2**20
            self._log(f"checkpoint: step {step} saved, {mib:,.1f} MiB in {seconds:.1f} s")
            try:
                commit.keep_newest(self.folder, self.config.keep_latest_k)
            except OSError as error:
                self._log(f"checkpoint: an old one can't be removed: {error}")

        writer = CommittingWriter(
            self.folder,
            step=step,
            world_size=self.world_size,
            model_only=model_only,
            on_commit=on_commit,
        )
        content = self._export(state) if model_only else self._pack(state)
        if self.config.async_mode == "disabled":
            try:
                dcp.save(content, storage_writer=writer, process_group=self.group)
            except CheckpointException as error:
                raise _save_error(step, error) from error
            self._held = (step, model_only)
            return
        self._stager = self._stager or _make_stager()
        future = dcp.async_save(
            content, storage_writer=writer, process_group=self.group, async_stager=self._stager
        )
        assert isinstance(future, Future)
        self._in_flight, self._held = (step, future), (step, model_only)

    def _set_aside(self) -> None:
        if self._left_behind is not None:
            step, self._left_behind = self._left_behind, None
            for name in self._on_rank_0(lambda: commit.set_aside(self.folder, step)):
                self._log(
                    f"checkpoint: {name} is past step {step}, which was gone back to: renamed"
                )

    def wait(self) -> None:
        """Wait until the asynchronous save under way, if any, is committed; raises its failure."""
        if self._in_flight is None:
            return
        (step, future), self._in_flight = self._in_flight, None
        try:
            future.result()
        except CheckpointException as error:
            self._held = None
            raise _save_error(step, error) from error

    def close(self) -> None:
        """Finish the save under way and free the copies kept for the next one."""
        try:
            self.wait()
        finally:
            if self._stager is not None:
                self._stager.close()
                self._stager = None

    def _pack(self, state: State) -> State:
        """The state as DCP stores it: tensors by name, everything else as bytes by name."""
        packed: State = {part: state[part] for part in _TENSOR_PARTS if part in state}
        for part in state.keys() - packed.keys():
            packed[part] = {name: _to_bytes(entry) for name, entry in self._entries(part, state)}
        return packed

    def _entries(self, part: str, state: State) -> list[tuple[str, Any]]:
        return [(f"rank-{self.rank}", state[part])] if part == "rng" else list(state[part].items())

    def _export(self, state: State) -> State:
        dtype = getattr(torch, self.config.export_dtype)
        model = state["model"].items()
        return {
            "model": {
                name: value.to(dtype) if value.is_floating_point() else value
                for name, value in model
            }
        }

    # --- load -------------------------------------------------------------------------------

    def load(self, state: State, *, initial: bool = True) -> int | None:
        """Load into `state` in place; returns the step that training goes on from.

        That is checkpoint.load_step, or the newest that verifies: a bad one is named in the log
        with its reason, and the one before is taken. Where the run has no checkpoint at all,
        checkpoint.initial_load_path is loaded; weights alone start at step 0.
        None = nothing to load; without `initial` that is so where the run has no checkpoint. Parts
        in checkpoint.exclude_from_loading are left as they are.
        Raises CheckpointError where the wanted one is bad, or all are, or none fits the model.
        """
        chosen = self._choose()
        if chosen is not None:
            self._read(chosen, state, model_only=False)
            self._held = (chosen.step, False)
            self._left_behind = chosen.step
            return chosen.step
        return self.load_initial(state) if initial and self.config.initial_load_path else None

    def load_initial(self, state: State) -> int:
        """Load checkpoint.initial_load_path into `state` in place; returns its step, as `load`."""
        if self.config.initial_load_in_hf:
            self._read_hugging_face(expanded(self.config.initial_load_path), state)
            return 0
        model_only = self.config.initial_load_model_only
        chosen = self._choose_initial(model_only)
        self._read(chosen, state, model_only=model_only)
        return 0 if model_only else chosen.step

    def _choose(self) -> Stored | None:
        folder, step = self.folder, self.config.load_step
        found = self._on_rank_0(lambda: commit.list_checkpoints(folder))
        if step < 0:
            return self._newest_good(found, model_only=False)
        wanted = [stored for stored in found if stored.step == step]
        if not wanted:
            steps = ", ".join(str(stored.step) for stored in found) or "none"
            raise CheckpointError(f"{folder}: no checkpoint of step {step}; there are: {steps}")
        return self._newest_good(wanted, model_only=False)

    def _choose_initial(self, model_only: bool) -> Stored:
        path = expanded(self.config.initial_load_path)
        found = self._on_rank_0(lambda: commit.find_checkpoints(path))
        chosen = self._newest_good(found, model_only=model_only)
        if chosen is None:
            what = "checkpoint.initial_load_path"
            raise ConfigError([Problem("job.toml", what, f"no checkpoint in {path}")])
        return chosen

    def _newest_good(self, found: list[Stored], *, model_only: bool) -> Stored | None:
        """The first that verifies, and that can be resumed from unless model_only."""
        reasons: list[str] = []
        for stored in found:
            problems = self._verify(stored.path, model_only=model_only)
            if not problems:
                return stored
            reasons.append(f"{stored.path}: {'; '.join(problems)}")
            self._log(f"checkpoint: not loading {reasons[-1]}")
        if reasons:
            raise CheckpointError("no checkpoint that can be loaded:\n  " + "\n  ".join(reasons))
        return None

    def _verify(self, path: Path, *, model_only: bool) -> list[str]:
        """What is wrong with a checkpoint, the same on every rank; each hashes its share."""

        def listing() -> tuple[Manifest | None, list[str]]:
            try:
                manifest = commit.read_manifest(path)
            except CheckpointError as error:
                return None, [str(error)]
            return manifest, commit.check_listing(path, manifest)

        manifest, problems = self._on_rank_0(listing)
        if manifest is None:
            return problems
        if manifest.model_only and not model_only:
            return ["holds the weights only, so training can't be resumed from it"]
        by_size = sorted(manifest.files.items(), key=lambda item: (-item[1].size, item[0]))
        share = by_size[self.rank :: self.world_size]
        found = [commit.check_file(path, name, record) for name, record in share]
        return problems + sorted(self._gather([problem for problem in found if problem]))

    def _read(self, stored: Stored, state: State, *, model_only: bool) -> None:
        """Load a verified checkpoint into `state`."""
        excluded = self.config.exclude_from_loading
        wanted = ["model"] if model_only else [part for part in state if part not in excluded]
        metadata = FileSystemReader(stored.path).read_metadata()
        known = metadata.state_dict_metadata
        target: State = {part: state[part] for part in wanted if part in _TENSOR_PARTS}
        for part in wanted:
            if part not in _TENSOR_PARTS:
                target[part] = dict.fromkeys(name for name, _ in self._entries(part, state))
        if "rng" in target and f"rng.rank-{self.rank}" not in known:
            target["rng"] = {}
        self._log_missing_rng(wanted, known)

        problems = self._gather(_mismatches(target, known))
        if problems:
            shown = "\n  ".join(sorted(set(problems))[:8])
            if any(problem.startswith("optimizer.") for problem in problems):
                shown += '\nto go on without: checkpoint.exclude_from_loading = ["optimizer"]'
            raise CheckpointError(f"{stored.path} doesn't fit this job:\n  {shown}")
        try:
            reader = FileSystemReader(stored.path)
            dcp.load(target, storage_reader=reader, process_group=self.group)
        except CheckpointException as error:
            raise _load_error(stored.path, error) from error
        for part in target.keys() - set(_TENSOR_PARTS):
            entries = {name: _from_bytes(entry) for name, entry in target[part].items()}
            state[part].update(entries.get(f"rank-{self.rank}", {}) if part == "rng" else entries)
        self._log(f"checkpoint: loaded {stored.path}")

    def _read_hugging_face(self, folder: Path, state: State) -> None:
        """Load published weights; every rank reads the parts that it holds."""
        assert self.sizes is not None, "the trainer says which model it is"
        started = time.perf_counter()
        ignored = load_into(state["model"], self.sizes, folder)
        if ignored:
            self._log(f"checkpoint: of no use to the model, not loaded: {', '.join(ignored)}")
        seconds = time.perf_counter() - started
        self._log(f"checkpoint: loaded {folder}, Hugging Face weights, in {seconds:.1f} s")

    def _log_missing_rng(self, wanted: list[str], known: dict[str, Any]) -> None:
        ranks = range(self.world_size)
        missing = [rank for rank in ranks if f"rng.rank-{rank}" not in known]
        if "rng" in wanted and missing:
            listed = ", ".join(str(rank) for rank in missing)
            self._log(
                f"checkpoint: it holds no random state for rank {listed}, which keep their seeds"
            )

    # --- between ranks ----------------------------------------------------------------------

    def _log(self, line: str) -> None:
        if self.rank == 0:
            self._print(line)

    def _on_rank_0(self, call: Callable[[], T]) -> T:
        """The result of a call made on rank 0, on every rank; so is its OSError."""
        outcome: list[Any] = [None]
        if self.rank == 0:
            try:
                outcome[0] = call()
            except (OSError, CheckpointError) as error:
                outcome[0] = error
        if self.distributed:
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        result: Any = outcome[0]
        if isinstance(result, Exception):
            raise result
        return result

    def _gather(self, items: list[T]) -> list[T]:
        """The items of all ranks, on every rank."""
        if not self.distributed:
            return items
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, items, group=self.group)
        return [item for rank_items in gathered for item in rank_items]


def _make_stager() -> DefaultStager:
    """Copies the state to host memory before `save` returns; its buffers serve every save."""
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
    )


def _to_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _from_bytes(data: bytes) -> Any:
    # Random states hold numpy arrays; the file's sha256 has been checked.
    return torch.load(io.BytesIO(data), weights_only=False, map_location="cpu")


def _mismatches(target: State, known: dict[str, Any]) -> list[str]:
    """Entries of the target that the checkpoint lacks, or has in another shape."""
    problems: list[str] = []
    for part, entries in target.items():
        for name, value in entries.items():
            key = f"{part}.{name}"
            if isinstance(value, torch.Tensor) or part not in _TENSOR_PARTS:
                stored = known.get(key)
                if stored is None:
                    problems.append(f"{key}: not in the checkpoint")
                elif isinstance(stored, TensorStorageMetadata) and stored.size != value.size():
                    there, here = tuple(stored.size), tuple(value.size())
                    problems.append(f"{key}: {there} in the checkpoint, {here} in the job's model")
    return problems


def _save_error(step: int, error: CheckpointException) -> Exception:
    rank, (cause, _) = min(error.failures.items())
    text = f"checkpoint of step {step} not saved: rank {rank}: {type(cause).__name__}: {cause}"
    lasting = isinstance(cause, OSError) and cause.errno in _LASTING
    return CheckpointError(text) if lasting else RuntimeError(text)


def _load_error(path: Path, error: CheckpointException) -> Exception:
    rank, (cause, _) = min(error.failures.items())
    text = f"{path} can't be loaded: rank {rank}: {type(cause).__name__}: {cause}"
    passing = isinstance(cause, OSError) and cause.errno not in _LASTING
    return RuntimeError(text) if passing else CheckpointError(text)
