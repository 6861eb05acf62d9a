"""Meshes: which groups there are, and how long their ranks wait for one that does not come."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from flavors import flavor_overrides
from training import write_job

from tests.parity import parity_job
from titan_recipes.trainer.optim.exchange import joined_group
from titan_recipes.trainer.parallel.mesh import lay_out, set_timeouts

P = "parallelism."
TP, PP, EP = (f"{P}{kind}_parallel_degree=2" for kind in ("tensor", "pipeline", "expert"))
CPU = torch.device("cpu")
RANK = """
import sys, time
from pathlib import Path
from training import leave_group
from titan_recipes.config.job import read_job
from titan_recipes.trainer.parallel.mesh import join_world
import torch
root = Path(sys.argv[1])
world = join_world(read_job(root / "job.toml"), root)
if world.rank != 0:  # of its data-parallel group: ranks 0 and 2
    while not (root / "raised").exists():
        time.sleep(0.1)
else:
    began = time.monotonic()
    try:
        world.sum_over(torch.ones(1), "dp")
    except RuntimeError as error:
        (root / "raised").write_text(f"{time.monotonic() - began} {error}")
leave_group()
"""


@pytest.fixture
def eight_ranks() -> Iterator[dist.ProcessGroup]:
    """Rank 0 of eight, without the others: the group of all."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield dist.group.WORLD
    dist.destroy_process_group()


def groups() -> list[dist.ProcessGroup]:
    return list(dist.distributed_c10d._world.pg_map)


def test_groups_of_ranks_that_share_matrices_are_there_before_a_stage_asks(
    corpus: Path, eight_ranks: dist.ProcessGroup
) -> None:
    settings = (*flavor_overrides("deepseek_v3"), PP, TP, EP, "optimizer.name='Muon'")
    world = lay_out(parity_job(corpus, *settings, ranks=8, dp=2), 0, CPU, eight_ranks)
    there = groups()
    for mesh, names in ((world.mesh, ("dp_shard_cp", "tp")), (world.expert_mesh, ("edp", "ep"))):
        shared = joined_group(mesh[names], (0, 1))
        assert (shared.size(), shared in there) == (4, True)
        assert joined_group(mesh[("pp", *names)], (1, 2)) is shared
    assert groups() == there


def test_checkpointers_group_keeps_its_timeout(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        saving = dist.new_group(backend="gloo")
        other = dist.new_group(backend="gloo")
        before = timeout_of(saving)
        set_timeouts(100, but=saving)
        assert before > 600
        assert [timeout_of(group) for group in (dist.group.WORLD, other, saving)] == [
            100,
            100,
            before,
        ]
    finally:
        dist.destroy_process_group()


def timeout_of(group: dist.ProcessGroup) -> float:
    """How long a group waits, in seconds."""
    return group._get_backend(CPU).options._timeout.total_seconds()


def test_rank_that_does_not_come_is_given_up_after_init_timeout(
    tmp_path: Path, corpus: Path
) -> None:
    root, program = tmp_path / "run", tmp_path / "rank.py"
    program.write_text(RANK)
    write_job(root, parity_job(corpus, "comm.init_timeout_seconds=4", TP, ranks=4, dp=2))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*command, str(program), str(root)], capture_output=True, text=True, env=environment,
        timeout=240,
    )  # fmt: skip
    assert (root / "raised").exists(), done.stderr
    seconds, words = (root / "raised").read_text().split(" ", 1)
    assert 3 < float(seconds) < 60  # torch's own timeout is 30 minutes
    assert "imed out" in words
