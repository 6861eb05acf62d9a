"""Updates inside of backward: each parameter's as soon as its gradient is there, which is freed.

At most the gradients of a few blocks are alive at once, instead of all: under FSDP those of a
rank's shards (LOMO, arXiv:2306.09782). The price is that nothing can depend on all gradients: no
clipping, no accumulation, and a step that is not finite has done its damage when it is found out.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from titan_recipes.trainer.optim.norm import SquaredNorm
from titan_recipes.trainer.optim.shards import step_one


class StepInBackward:
    """Updates every parameter of the optimizers from now on; FSDP calls its hooks on shards."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer], device: torch.device) -> None:
        self._device, self._squares = device, SquaredNorm()
        self._updated: set[nn.Parameter] = set()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    update = partial(self._update, optimizer, group)
                    parameter.register_post_accumulate_grad_hook(update)

    @torch.no_grad()
    def _update(
        self, optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor
    ) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        assert parameter not in self._updated, "a second gradient in one step"
        self._updated.add(parameter)
        self._squares.add(parameter.grad)
        step_one(optimizer, group, parameter)
        parameter.grad = None

    def take_norm(self) -> tuple[Tensor, Tensor]:
        """The step's gradient norm, as `global_grad_norm`; the next backward begins anew."""
        squares, self._squares = self._squares, SquaredNorm()
        self._updated.clear()
        return squares.root(self._device)
