"""Stopping together: one file, and all ranks leave after the same step.

A rank may see the stop file a step before another does. So at each step boundary every rank says
whether it sees the file, in an all-reduce MAX of one int on a host group, and reads the answer at
the next boundary: it travels while the device works, and all ranks act on the same answer.
"""

from pathlib import Path

import torch
import torch.distributed as dist

from titan_recipes.trainer.parallel.mesh import World


class StopSignal:
    """Watches the stop file for all ranks. Every rank calls `poll` once per step boundary."""

    def __init__(self, path: Path, world: World) -> None:
        self._path = path
        self._group = world.host_group
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def poll(self) -> bool:
        """Whether the ranks agree to stop now."""
        if self._group is None:
            return self._path.exists()
        stop = self.drain()
        self._flag.fill_(int(self._path.exists()))
        self._pending = dist.all_reduce(
            self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return stop

    def drain(self) -> bool:
        """Wait for the answer on its way, if any, and return it."""
        if self._pending is None:
            return False
        self._pending.wait()
        self._pending = None
        return bool(self._flag.item())
