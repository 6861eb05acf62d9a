"""The collectives of one rank: which operation, over which axis of the mesh, how often, how much.

Bytes of one are those of its larger side: what an all-gather gives, what a reduce-scatter takes.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from titan_recipes.trainer.parallel.mesh import World
from titan_recipes.trainer.simulate.memory import operator_name

NAMES = (
    "all_gather", "all_reduce", "all_to_all", "reduce_scatter", "reduce", "scatter", "gather",
    "broadcast", "send", "recv", "barrier",
)  # fmt: skip
"""What people call collectives: the first that the name of torch's operator begins with."""


class Kind(NamedTuple):
    """Collectives that are counted together. axis: of a mesh, "host" or "world"."""

    op: str
    axis: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """How often, and how many bytes in all."""

    count: int
    size: int


class CollectiveCounter(TorchDispatchMode):
    """Counts the collectives issued under it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._axis = axis_of_group(world)
        self._counts: Counter[Kind] = Counter()
        self._bytes: Counter[Kind] = Counter()

    def take(self) -> dict[Kind, Traffic]:
        """What was counted since the last call."""
        taken = {kind: Traffic(self._counts[kind], self._bytes[kind]) for kind in self._counts}
        self._counts.clear()
        self._bytes.clear()
        return taken

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if op := _collective(operator_name(func)):
            kind = Kind(op, self._find_axis(args))
            self._counts[kind] += 1
            self._bytes[kind] += max(map(_num_bytes, (*args, out)))
        return out

    def _find_axis(self, args: Any) -> str:
        for arg in args:
            if isinstance(arg, str) and arg in self._axis:
                return self._axis[arg]
            if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
                group = dist.ProcessGroup.unbox(arg)
                # A group that is no axis says itself what it joins.
                return self._axis.get(group.group_name) or group.group_desc
        raise AssertionError("a collective without a group")


def _collective(operator: str) -> str:
    """What people call it, "" where it is none: `c10d::_allgather_base_` is an all_gather."""
    namespace, _, name = operator.partition("::")
    if namespace not in ("c10d", "_c10d_functional"):
        return ""
    plain = name.replace("_", "")
    return next((known for known in NAMES if plain.startswith(known.replace("_", ""))), "")


def _num_bytes(value: Any) -> int:
    leaves = tree_leaves(value)
    return sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))


def axis_of_group(world: World) -> dict[str, str]:
    """The name of every process group -> the axis that it joins."""
    if world.mesh is None or world.host_group is None:
        return {}
    assert dist.group.WORLD is not None
    axes: dict[str, str] = {
        dist.group.WORLD.group_name: "world",
        world.host_group.group_name: "host",
    }
    for mesh in (world.expert_mesh, world.data_mesh, world.mesh):
        if isinstance(mesh, DeviceMesh):
            for axis in mesh.mesh_dim_names or ():
                axes[mesh.get_group(axis).group_name] = axis
    return axes
