"""The load of experts: what each step tells about it, and the bias that evens it out."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from titan_recipes.trainer.model.moe import Moe
from titan_recipes.trainer.parallel.expert_parallel import moe_layers
from titan_recipes.trainer.parallel.mesh import World

TOKEN_AXES = ("dp", "cp", "tp")
"""Axes over which ranks route different tokens; under tp, parts of the sequence."""


class ExpertLoad:
    """Follows the experts of this rank's layers from step to step; does nothing without any."""

    def __init__(self, parts: Sequence[nn.Module], world: World, load_balance_coeff: float) -> None:
        self.layers: list[Moe] = [moe for part in parts for moe in moe_layers(part)]
        self._world = world
        self._coeff = load_balance_coeff
        # A pipeline stage may have none: it takes part in what the others exchange nevertheless.
        layers = torch.tensor(len(self.layers), device=world.device)
        self._has_experts = bool(world.sum_over(layers, "pp"))

    def begin_step(self, num_tokens: Tensor) -> None:
        """Tell the balance loss how many tokens the step has."""
        for moe in self.layers:
            moe.balance_factor.copy_(1 / num_tokens)

    @torch.no_grad()
    def end_step(self, *, update: Tensor) -> dict[str, Tensor]:
        """Move each selection bias one step towards even load; returns metrics, on the device.

        The bias of an expert with less than the mean load rises by load_balance_coeff, that of one
        with more falls (arXiv:2408.15664). expert_load_max: tokens of the busiest expert over the
        mean, 1 at balance, of the worst layer; experts_idle: experts without a token, in all layers
        together. update: a scalar on the device; false = the biases stay.
        """
        if not self._has_experts:
            return {}
        worst = torch.zeros((), device=self._world.device)
        idle = torch.zeros((), dtype=torch.int64, device=self._world.device)
        if self.layers:
            worst, idle = self._end_layers(update=update)
        if self._world.pp_mesh is not None:
            dist.all_reduce(worst, dist.ReduceOp.MAX, self._world.pp_mesh.get_group())
        return {"expert_load_max": worst, "experts_idle": self._world.sum_over(idle, "pp")}

    def _end_layers(self, *, update: Tensor) -> tuple[Tensor, Tensor]:
        """Update this rank's layers; returns their worst load and how many experts were idle."""
        counts_XE = torch.stack([moe.tokens_per_expert_E for moe in self.layers])
        counts_XE = self._world.sum_over(counts_XE, *TOKEN_AXES).float()
        mean_X1 = counts_XE.mean(dim=1, keepdim=True)
        for moe, step_E in zip(self.layers, (mean_X1 - counts_XE).sign(), strict=True):
            moe.tokens_per_expert_E.zero_()
            if self._coeff and moe.router.selection_bias is not None:
                moe.router.selection_bias += torch.where(update, self._coeff * step_E, 0.0)
        return (counts_XE / mean_X1).max(), (counts_XE == 0).sum()
