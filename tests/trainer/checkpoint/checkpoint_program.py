"""The ranks of the checkpoint tests: `python checkpoint_program.py CASE DIR WORLD...`.

Ranks are forked from one process that has imported torch, for one world size after the other. It
writes `pids-<case>-<world>.json` when they run, and `codes-...` with their exit codes at the end.
The model has rows that no world size divides, so every layout shards it unevenly.
"""

import json
import multiprocessing
import resource
import sys
from pathlib import Path

import torch
import torch._dynamo  # AdamW would import it, for a second or two, in every fork
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from titan_recipes.config.layout import replace_file
from titan_recipes.config.schema import Checkpoint
from titan_recipes.errors import CheckpointError
from titan_recipes.trainer.checkpoint.store import Checkpointer

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
FULL = StateDictOptions(flatten_optimizer_state_dict=True, full_state_dict=True, cpu_offload=True)


def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    if dist.get_world_size() > 1:
        for layer in (model[0], model[2], model):
            fully_shard(layer)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        inputs = torch.arange(10, dtype=torch.float32).reshape(2, 5) / (step + 1)
        model(inputs).square().sum().backward()
        optimizer.step()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict:
    return {
        "model": get_model_state_dict(model, options=FLAT),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=FLAT),
        "progress": {"step": step, "seen": [step, step * 2]},
        "rng": {"cpu": torch.get_rng_state()},
    }


def full(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Everything unsharded, on rank 0."""
    return {
        "model": get_model_state_dict(model, options=FULL),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=FULL),
    }


def save(run: Path, rank: int) -> None:
    """Sync and async saves of the same state; the async one is altered while it is written."""
    model, optimizer = build(seed=1)
    train(model, optimizer, 2)
    torch.manual_seed(100 + rank)
    sync = Checkpointer(Checkpoint(), run / "checkpoints", log=print)
    sync.save(2, state_of(model, optimizer, 2))
    expected = full(model, optimizer)
    if rank == 0:
        torch.save(expected, run / "expected.pt")

    background = Checkpointer(Checkpoint(async_mode="async"), run / "async", log=print)
    background.save(2, state_of(model, optimizer, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for entry in optimizer.state.values():
            entry["exp_avg"].zero_()
    torch.manual_seed(999)
    background.save(3, state_of(model, optimizer, 3))  # waits for the first
    background.close()

    # One rank can't write: every rank learns it, and nothing is committed.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for case in (sync, background):
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        told = ""
        try:
            case.save(4, state_of(model, optimizer, 4))
            case.wait()
        except CheckpointError as error:
            told = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "step 4 not saved: rank 1: OSError: [Errno 27] File too large" in told


def load(run: Path, rank: int) -> None:
    """Load each folder into a model of other values and compare with what was saved."""
    lines: dict[str, list[str]] = {}
    expected = torch.load(run / "expected.pt")
    for folder in ("checkpoints", "async", "damaged"):
        model, optimizer = build(seed=2)
        torch.manual_seed(7)
        state = state_of(model, optimizer, 0)
        lines[folder] = []
        config = Checkpoint(load_step=2 if folder == "async" else -1)
        checkpointer = Checkpointer(config, run / folder, log=lines[folder].append)
        step = checkpointer.load(state)
        assert step == 2, step
        assert state["progress"] == {"step": 2, "seen": [2, 4]}

        torch.manual_seed(100 + rank if rank < 2 else 7)
        assert torch.equal(state["rng"]["cpu"], torch.get_rng_state())

        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=FLAT)
        found = full(model, optimizer)
        if rank == 0:
            for part in ("model", "optimizer"):
                assert found[part].keys() == expected[part].keys()
                for name, value in expected[part].items():
                    same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
                    assert same(found[part][name], value), (folder, name)
    if rank == 0:
        (run / f"log-{dist.get_world_size()}.json").write_text(json.dumps(lines))


def save_forever(run: Path, rank: int) -> None:
    """Save 32 MiB again and again until somebody kills a rank."""
    checkpointer = Checkpointer(Checkpoint(keep_latest_k=2), run / "checkpoints", log=print)
    tensor = torch.full((4 << 20,), float(rank))
    for step in range(1, 10_000):
        checkpointer.save(step, {"model": {f"weight-{rank}": tensor}, "progress": {"step": step}})


CASES = {"save": save, "load": load, "save_forever": save_forever}


def run_rank(case: str, directory: Path, rank: int, world: int) -> None:
    meet = f"file://{directory}/meet-{case}-{world}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    CASES[case](directory, rank)
    dist.destroy_process_group()


def main(case: str, directory: Path, worlds: list[int]) -> None:
    fork = multiprocessing.get_context("fork")
    for world in worlds:
        ranks = [
            fork.Process(target=run_rank, args=(case, directory, rank, world))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        pids = [process.pid for process in ranks]
        replace_file(directory / f"pids-{case}-{world}.json", json.dumps(pids))
        for process in ranks:
            process.join()
        codes = [process.exitcode for process in ranks]
        replace_file(directory / f"codes-{case}-{world}.json", json.dumps(codes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [int(world) for world in sys.argv[3:]])
