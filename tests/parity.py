"""Many jobs trained by the same ranks, one after another: starting ranks costs more than a case.

As a script, `parity.py RANKS ROOT NAME...`, it is those ranks; a case is ROOT/NAME/job.toml. What
torchrun and the trainer's own start do is left to `training.train` and to real launches.
"""

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

from training import column, forget_job, leave_group, small_job, train_here, write_job

from titan_recipes.config.job import Job, read_job
from titan_recipes.config.layout import RunLayout
from titan_recipes.launch.torchrun import rendezvous

STEPS = 20
TINY = (
    "model.dim=64",
    "model.n_layers=4",
    "model.n_heads=8",
    "model.n_kv_heads=4",
    "model.head_dim=8",
    "model.ffn_dim=128",
    "training.seq_len=64",
    "training.global_batch_size=16",
    f"training.steps={STEPS}",
    # At the recipe's 3e-3 so small a model is chaotic from about step 10: rounding grows to 1e-5.
    "optimizer.lr=1e-3",
    "checkpoint.enable=false",
    "metrics.enable_tensorboard=false",
)
"""Overrides of the debug recipe that leave something to split on every axis of 8 ranks."""


def parity_job(corpus: Path, *overrides: str, ranks: int = 1, dp: int = 1) -> Job:
    """A tiny fp32 job of two passes in each step; dp: ranks that read different data."""
    batch = f"training.local_batch_size={16 // (2 * dp)}"
    return small_job(corpus, *TINY, batch, *overrides, ranks=ranks)


def train_all(root: Path, jobs: dict[str, Job], *, timeout: float = 600) -> None:
    """Train each job in root/<name>; all have the same number of ranks. Fails with the output.

    After `timeout` seconds the ranks are ended, and the output says what each was waiting for.
    """
    (num_ranks,) = {job.derived.world_size for job in jobs.values()}
    if num_ranks == 1:
        for name, job in jobs.items():
            train_here(root / name, job)
        return
    for name, job in jobs.items():
        write_job(root / name, job)
    with subprocess.Popen(
        [sys.executable, __file__, str(num_ranks), str(root), *jobs],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    ) as ranks:
        end = f"not done after {timeout:.0f} s"
        try:
            output, _ = ranks.communicate(timeout=timeout)
            end = f"exit {ranks.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(ranks.pid, signal.SIGTERM)
            output, _ = ranks.communicate()
    if ranks.returncode:
        raise AssertionError(f"{', '.join(jobs)}: {end}\n{output}")


def difference(expected: Path, found: Path) -> float:
    """The largest relative difference of loss and gradient norm over all steps of two runs."""
    worst = 0.0
    for name in ("loss", "grad_norm"):
        a, b = column(expected, name), column(found, name)
        assert len(a) == len(b) > 0
        worst = max(worst, *(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True)))
    return worst


def _start_ranks(num_ranks: int, root: Path, names: list[str]) -> None:
    """Fork the ranks: torch, which takes seconds to import, is imported once for all of them."""
    from torch.multiprocessing.spawn import start_processes

    import titan_recipes.trainer.train  # noqa: F401 # and with it all that a rank needs

    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(rendezvous(1, 0, "", "").port)}
    where |= {"WORLD_SIZE": str(num_ranks)}
    start_processes(_be_rank, (where, root, names), nprocs=num_ranks, start_method="fork")


def _be_rank(rank: int, where: dict[str, str], root: Path, names: list[str]) -> None:
    from torch.distributed import distributed_c10d

    from titan_recipes.trainer.data.prepare import ensure_prepared
    from titan_recipes.trainer.metrics import RankEvents
    from titan_recipes.trainer.parallel.mesh import join_world
    from titan_recipes.trainer.train import Trainer

    os.environ |= {**where, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    faulthandler.register(signal.SIGTERM, chain=True)
    for name in names:
        layout = RunLayout(root / name)
        (root / name / "logs").mkdir(exist_ok=True)
        job = read_job(root / name / "job.toml")
        prepared = ensure_prepared(job)
        world = join_world(job, layout.root)
        trainer = Trainer(job, layout, world, RankEvents(layout, world.rank), prepared)
        groups = len(distributed_c10d._world.pg_map)
        trainer.train()
        # NCCL makes a group of all ranks at once: later, those that need none would not take part.
        made = len(distributed_c10d._world.pg_map) - groups
        assert not made, f"{name}: {made} groups made while it trained"
        forget_job()
    leave_group()


if __name__ == "__main__":
    _start_ranks(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
