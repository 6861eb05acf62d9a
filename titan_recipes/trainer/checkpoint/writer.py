"""DCP's file writer, with checksums and an atomic commit.

Each rank's shard is hashed while it is written, so the sha256 is that of the bytes in memory and no
file is read twice. The digests travel with the write results that DCP gathers anyway; `finish`,
which DCP calls on the coordinator once every rank has written, makes the manifest of them and
commits. A synchronous and an asynchronous save are the same path and cost no collective more.
"""

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from titan_recipes import __version__
from titan_recipes.trainer.checkpoint import commit
from titan_recipes.trainer.checkpoint.commit import FileRecord, Manifest


class _HashingStream:
    """A file open for writing that hashes what passes; DCP writes front to back only."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.write_to_file = file.write
        self.tell, self.flush, self.fileno, self.close = (
            file.tell,
            file.flush,
            file.fileno,
            file.close,
        )

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.write_to_file(data)


class _HashingFileSystem(FileSystem):
    """Records size and sha256 of every file written through it."""

    def __init__(self) -> None:
        self.files: dict[str, FileRecord] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Generator[Any, None, None]:
        path = Path(path)
        with path.open(mode) as file:
            if mode != "wb":
                yield file
                return
            stream = _HashingStream(file)
            yield stream
        self.files[path.name] = FileRecord(path.stat().st_size, stream.digest.hexdigest())

    def rename(self, path: Any, new_path: Any) -> None:
        super().rename(path, new_path)
        self.files[Path(new_path).name] = self.files.pop(Path(path).name)


class _RankResults(list[WriteResult]):
    """One rank's write results, with the records of the files that hold them."""

    files: dict[str, FileRecord]


class CommittingWriter(FileSystemWriter):
    """Writes one checkpoint below `folder` and commits it.

    `on_commit(manifest)` is called on the coordinator after the rename; in an asynchronous save
    from its thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        world_size: int,
        model_only: bool,
        on_commit: Callable[[Manifest], None],
    ) -> None:
        # Nothing is copied ahead: DCP would ask for a CUDA stream, in a thread whose device is
        # GPU 0, whatever the rank's, and so open a context there for every rank of the node.
        super().__init__(commit.scratch_path(folder, step), per_thread_copy_ahead=0)
        self.fs = _HashingFileSystem()
        self.folder = folder
        self.step = step
        self.world_size = world_size
        self.model_only = model_only
        self.on_commit = on_commit

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        # On the coordinator, before any rank writes: no other place can clean up without a barrier.
        self.folder.mkdir(parents=True, exist_ok=True)
        commit.remove_leftovers(self.folder)
        Path(self.path).mkdir()
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = _RankResults(super().write_data(plan, planner).value())
        results.files = self.fs.files
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        files = dict(self.fs.files)
        for rank_results in results:
            assert isinstance(rank_results, _RankResults)
            files |= rank_results.files
        manifest = Manifest(
            step=self.step,
            world_size=self.world_size,
            model_only=self.model_only,
            titan_recipes=__version__,
            torch=torch.__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files=dict(sorted(files.items())),
        )
        commit.commit(Path(self.path), manifest)
        self.on_commit(manifest)
