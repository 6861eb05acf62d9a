"""The 2-norm over the gradients of all ranks."""

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


class SquaredNorm:
    """A sum of squares of gradients that come one by one.

    torch's float32 `vector_norm` on CPU is off by up to 2e-3 on large tensors, so that the norm
    would depend on how they are sharded; its norms of rows are right to 1e-7, and summed in
    float64 cost a tenth of casting the whole.
    """

    def __init__(self) -> None:
        self._by_axes: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = defaultdict(list)

    def add(self, grad: Tensor) -> None:
        """Add a gradient, whole or sharded. Nothing travels yet."""
        groups: tuple[dist.ProcessGroup, ...] = ()
        if isinstance(grad, DTensor):
            mesh = grad.device_mesh
            groups = tuple(
                mesh.get_group(axis)
                for axis, placement in enumerate(grad.placements)
                if not placement.is_replicate()
            )
            grad = grad.to_local()
        norms, dtype = grad, torch.float32
        if grad.device.type == "cpu":
            dtype = torch.float64
            if grad.ndim > 1:
                norms = torch.linalg.vector_norm(grad, dim=-1, dtype=torch.float32)
        self._by_axes[groups].append(torch.linalg.vector_norm(norms, dtype=dtype))

    def root(
        self, device: torch.device, pp_group: dist.ProcessGroup | None = None
    ) -> tuple[Tensor, Tensor]:
        """(norm over all ranks, norm over this rank's shards), float32 scalars on `device`.

        The second tells where a fault is. Squares of sharded gradients are all-reduced over the
        mesh axes that shard them, replicated ones counted once; pipeline stages hold different
        parameters, so pp_group adds theirs.
        """
        total = torch.zeros((), dtype=torch.float64, device=device)
        own = total.clone()
        for groups, norms in self._by_axes.items():
            part = torch.stack(norms).square().sum().to(device)
            own += part
            for group in groups:
                dist.all_reduce(part, group=group)
            total += part
        if pp_group is not None:
            dist.all_reduce(total, group=pp_group)
        return total.sqrt().float(), own.sqrt().float()
