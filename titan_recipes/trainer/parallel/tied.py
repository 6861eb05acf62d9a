"""Tied embeddings under pipeline parallelism: two copies of one weight, kept equal.

The first stage holds the matrix as embedding, the last a copy of it as output. Both begin with the
same numbers (`model.init`). Once a step, after its last pass, their gradients are summed, as in
Megatron-LM: the same update then keeps them bitwise equal. The gradient norm counts the weight once
and a checkpoint knows the optimizer's state of it once, by the embedding's name, as without a
pipeline; the weight itself a tied model saves under both names at any layout.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.optim.shards import local
from titan_recipes.trainer.parallel.mesh import World

_WEIGHT, _COPY = ".tok_embeddings.weight.", ".output.weight."
"""How both appear in names of optimizer state."""


def has_copy(part: nn.Module) -> bool:
    """Whether a part is the stage whose output is a copy of another stage's embedding."""
    if not isinstance(part, Decoder) or not part.sizes.tie_embeddings:
        return False
    return part.output is not None and part.tok_embeddings is None


def counted_parameters(parts: Sequence[Decoder]) -> list[nn.Parameter]:
    """Every parameter of a rank's parts but a copy, for sums over the whole model."""
    return [
        parameter
        for part in parts
        for name, parameter in part.named_parameters()
        if not (has_copy(part) and name == "output.weight")
    ]


class TiedWeight:
    """The copies of the tied weight on this rank: none, one, or with a V-shaped schedule both."""

    def __init__(self, parts: Sequence[Decoder], world: World, first: int, last: int) -> None:
        """first, last: the pipeline's ranks with the first and last stage. Collective."""
        ends = [end for part in parts for end in (part.tok_embeddings, part.output) if end]
        self._copies = [parameter for end in ends for parameter in end.parameters()]
        self._device = world.device
        self._group: dist.ProcessGroup | None = None
        if first != last:
            assert world.pp_mesh is not None
            # The pipeline is the slowest axis: these have the same place on all others.
            size = world.size // world.pp_mesh.size()
            pairs = [[first * size + place, last * size + place] for place in range(size)]
            group, _ = dist.new_subgroups_by_enumeration(pairs, group_desc="tied")
            assert not isinstance(group, int), "None on a rank that has no copy"
            self._group = group

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Give every copy the sum of all copies' gradients. Call it once a step."""
        grads = [local(weight.grad) for weight in self._copies if weight.grad is not None]
        if self._group is not None:
            for grad in grads:
                # With CPU offload the gradient is in host memory.
                on_device = grad.to(self._device)
                dist.all_reduce(on_device, group=self._group)
                grad.copy_(on_device)
        elif grads:
            embedding, output = grads
            embedding += output
            output.copy_(embedding)


# --- the optimizer's state ------------------------------------------------------------------------


def stored_name(part: nn.Module, name: str) -> str:
    """What a checkpoint calls an entry of a part's flat optimizer state."""
    return name.replace(_COPY, _WEIGHT) if has_copy(part) else name
