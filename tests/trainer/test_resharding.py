"""A checkpoint of one layout goes on under any other, as if the run had not been disturbed."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from flavors import flavor_overrides
from parity import difference, parity_job, train_all
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from titan_recipes.config.job import Job

P = "parallelism."
TP, PP, EP = (f"{P}{kind}_parallel_degree=2" for kind in ("tensor", "pipeline", "expert"))
V_SHAPED = f"{P}pipeline_parallel_schedule='ZBVZeroBubble'"
FAMILIES = {"dense": "llama3", "tied": "gemma", "experts": "deepseek_v3"}

TRAINED = {
    "dense": (2, (TP,)),
    "tied": (2, (PP,)),
    "experts": (4, (EP,)),
}
"""On four ranks, undisturbed: ranks that read different data, settings."""

RESUMED = {
    1: {
        "dense, one process": (1, ()),
        "tied, one process": (1, ()),
        "experts, one process": (1, ()),
    },
    2: {
        "dense, fsdp 2": (2, ()),
        "tied, fsdp 2": (2, ()),
    },
    4: {
        "dense, pp 2 x fsdp 2": (2, (PP,)),
        "experts, fsdp 2 x tp 2": (2, (TP,)),
        "tied, one process, back to pp 2 x tp 2": (1, (PP, TP, V_SHAPED)),
        "tied, fsdp 2, back to pp 2 x fsdp 2": (2, (PP,)),
    },
}
"""By number of ranks. "x, y" goes on from x's step 4, "x, y, back to z" from step 6 of "x, y"."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable:UserWarning")
def test_losses_go_on_under_any_other_layout(tmp_path: Path, corpus: Path) -> None:
    def job(name: str, dp: int, settings: tuple[str, ...], *, ranks: int, load_step: int) -> Job:
        run = (
            "training.steps=8",
            "checkpoint.enable=true",
            "checkpoint.interval=2",
            f"checkpoint.load_step={load_step}",
        )
        model = flavor_overrides(FAMILIES[name.split(",")[0]])
        return parity_job(corpus, *model, *run, *settings, ranks=ranks, dp=dp)

    train_all(
        tmp_path,
        {name: job(name, *case, ranks=4, load_step=-1) for name, case in TRAINED.items()},
    )
    for ranks, cases in RESUMED.items():
        jobs: dict[str, Job] = {}
        for name, case in cases.items():
            begun = name.rpartition(", ")[0]
            shutil.copytree(tmp_path / begun, tmp_path / name)
            jobs[name] = job(name, *case, ranks=ranks, load_step=6 if "back" in name else 4)
        train_all(tmp_path, jobs)
        for name in jobs:
            undisturbed = tmp_path / name.split(",")[0]
            assert difference(undisturbed, tmp_path / name) <= 1e-5, name

    alone = _stored(tmp_path / "tied, one process")
    for name in ("tied", "tied, one process, back to pp 2 x tp 2"):
        found = _stored(tmp_path / name)
        assert {key: value.shape for key, value in found.items()} == {
            key: value.shape for key, value in alone.items()
        }
        # Two stages hold the weight, each updates its own.
        assert torch.equal(found["model.tok_embeddings.weight"], found["model.output.weight"])
        assert not any("state.output" in key for key in found)


def _stored(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's last checkpoint, by name."""
    reader = FileSystemReader(run / "checkpoints" / "step-00000008")
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state
