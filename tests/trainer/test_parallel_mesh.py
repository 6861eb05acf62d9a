"""Meshes: how long their ranks wait for one that does not come."""

import os
import subprocess
import sys
from pathlib import Path

from training import write_job

from tests.parity import parity_job

TP = "parallelism.tensor_parallel_degree=2"
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
