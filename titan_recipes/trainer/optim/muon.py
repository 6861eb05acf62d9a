"""Muon (Keller Jordan 2024, kellerjordan.github.io/posts/muon): orthogonalized momentum.

The momentum of a matrix, seen as U S V^T, is replaced by about U V^T: five Newton-Schulz steps in
bfloat16 push its singular values to between 0.7 and 1.2. The rate is matched to AdamW's by
0.2 * sqrt(max(rows, columns)), so that both share a schedule and a weight decay (arXiv:2502.16982).
Every matrix of a block is one, and every expert's; all other parameters are AdamW's.

The products need the whole matrix, of which a rank has a shard. `MatrixExchange` deals the matrices
to the ranks that share them.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from titan_recipes.trainer.optim.exchange import MatrixExchange, joined_group, shared_axes
from titan_recipes.trainer.optim.shards import local

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of X, (X X^T) X and (X X^T)^2 X in a Newton-Schulz step; steepest at 0, where X has most."""
STEPS = 5
LARGEST_BATCH = 2**26
"""Numbers of matrices of one shape that are multiplied together, 128 MiB."""


class Muon(torch.optim.AdamW):
    """Muon for the groups with "is_muon", AdamW for the others.

    As the fused AdamW it looks at `found_inf` on the device: the host does not wait.
    """

    def __init__(self, groups: Any, *, momentum: float, **options: Any) -> None:
        """options: AdamW's; a group's lr and weight_decay are its matrices' too."""
        super().__init__(groups, **options)
        self.momentum = momentum
        self._exchanges: list[tuple[MatrixExchange, list[nn.Parameter]]] | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update what has a gradient; nothing where `found_inf` is 1."""
        groups = self.param_groups
        others = [group for group in groups if not group["is_muon"]]
        if others:
            self.param_groups = others
            try:
                super().step()
            finally:
                self.param_groups = groups
        self._step_matrices([group for group in groups if group["is_muon"]])

    def _step_matrices(self, groups: list[dict[str, Any]]) -> None:
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        updates = {
            parameter: self._momentum_update(parameter, found_inf)
            for group in groups
            for parameter in group["params"]
            if parameter.grad is not None
        }
        directions = self._orthogonalized(updates)
        for group in groups:
            for parameter in group["params"]:
                if parameter not in directions:
                    continue
                shard, direction = local(parameter), directions[parameter]
                decay: Any = 1 - group["lr"] * group["weight_decay"]
                if found_inf is not None:
                    decay = torch.where(found_inf == 0, decay, 1.0)
                    direction = torch.where(found_inf == 0, direction, 0.0)
                rate = group["lr"] * 0.2 * math.sqrt(max(parameter.shape[-2:]))
                shard.mul_(decay)
                shard.add_(direction, alpha=-rate)

    def _momentum_update(self, parameter: nn.Parameter, found_inf: Tensor | None) -> Tensor:
        """A shard of what is to be made orthogonal, in bfloat16; the momentum moves on."""
        assert parameter.grad is not None
        state, grad = self.state[parameter], local(parameter.grad)
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        momentum = local(state["momentum_buffer"])
        moved = momentum.lerp(grad, 1 - self.momentum)
        momentum.copy_(moved if found_inf is None else torch.where(found_inf == 0, moved, momentum))
        return grad.lerp(momentum, self.momentum).bfloat16()

    def _orthogonalized(self, updates: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Shards of the orthogonalized matrices from those of the updates; collective."""
        if self._exchanges is None:
            self._exchanges = _exchanges(list(updates))
        shared = {parameter for _, parameters in self._exchanges for parameter in parameters}
        done: dict[nn.Parameter, Tensor] = {}
        for exchange, parameters in self._exchanges:
            shards = [updates[parameter] for parameter in parameters]
            done |= zip(parameters, exchange.apply(orthogonalize_all, shards), strict=True)
        alone = [parameter for parameter in updates if parameter not in shared]
        matrices = [updates[parameter] for parameter in alone]
        done |= zip(alone, orthogonalize_all(matrices), strict=True)
        return done


def _exchanges(parameters: list[nn.Parameter]) -> list[tuple[MatrixExchange, list[nn.Parameter]]]:
    """One exchange for each set of ranks that share matrices."""
    by_ranks: dict[tuple[DeviceMesh, tuple[int, ...]], list[DTensor]] = defaultdict(list)
    for parameter in parameters:
        if isinstance(parameter, DTensor) and (axes := shared_axes(parameter)):
            by_ranks[parameter.device_mesh, axes].append(parameter)
    return [
        (MatrixExchange(shared, joined_group(mesh, axes), axes), list[Any](shared))
        for (mesh, axes), shared in by_ranks.items()
    ]


def orthogonalize_all(updates: list[Tensor]) -> list[Tensor]:
    """The same for matrices [R, C] or stacks of them [N, R, C], those of one shape together."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for place, update in enumerate(updates):
        by_shape[update.shape].append(place)
    done = list(updates)
    for shape, places in by_shape.items():
        at_once = max(LARGEST_BATCH // max(shape.numel(), 1), 1)
        for begin in range(0, len(places), at_once):
            batch = places[begin : begin + at_once]
            stacked = torch.stack([updates[place] for place in batch])
            result = orthogonalize(stacked.flatten(0, -3)).view(stacked.shape)
            for place, matrix in zip(batch, result.unbind(), strict=True):
                done[place] = matrix
    return done


def orthogonalize(x_NRC: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T, by Newton-Schulz iteration; in x's type.

    After torch.optim.Muon: the sum of squares bounds the largest singular value by 1.
    """
    a, b, c = COEFFICIENTS
    is_tall = x_NRC.shape[1] > x_NRC.shape[2]
    x = x_NRC.mT if is_tall else x_NRC
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if is_tall else x
