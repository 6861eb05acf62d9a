"""Expert parallelism: each rank holds some of the experts, and tokens travel to them and back.

The ranks of one copy of the model (dp_shard x cp x tp) form groups of ep neighbours. In a group
every expert lives once; all groups of a copy share its experts' weights as FSDP shards (axis edp).
Each rank brings tokens of its own: under tensor parallelism those of its part of the sequence, so
experts are never split by tp (GShard's dispatch, arXiv:2006.16668, without a capacity: no token is
dropped).

Shapes: T copies of tokens, D model, E experts, L experts of a rank (E / ep).
"""

from typing import cast

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.moe import GroupedExperts, Moe, Rearrange


def moe_layers(model: nn.Module) -> list[Moe]:
    """The layers with experts, in order."""
    return [module for module in model.modules() if isinstance(module, Moe)]


def apply_expert_parallel(model: Decoder, ep_mesh: DeviceMesh) -> None:
    """Split the experts of every layer over ep_mesh, in place, and send tokens to them."""
    for moe in moe_layers(model):
        for name, weight in list(moe.experts.named_parameters()):
            sharded = distribute_tensor(weight.detach(), ep_mesh, [Shard(0)], src_data_rank=None)
            moe.experts.register_parameter(name, nn.Parameter(sharded))
        moe.experts.local = LocalShard()
        moe.dispatcher = AllToAllDispatcher(ep_mesh.get_group())


def sum_sequence_counts(model: Decoder, groups: list[dist.ProcessGroup]) -> None:
    """Have the balance loss count whole sequences, whose parts lie on the ranks of `groups`."""
    for moe in moe_layers(model):
        moe.sequence_counts = SumOverRanks(groups)


class SumOverRanks(nn.Module):
    """The sum of a tensor without gradient over several groups, one after the other."""

    def __init__(self, groups: list[dist.ProcessGroup]) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, counts_BE: Tensor) -> Tensor:
        for group in self.groups:
            counts_BE = collectives.all_reduce(counts_BE, "sum", group)
        return counts_BE


class LocalShard(nn.Module):
    """A rank's own experts out of a weight of all."""

    def forward(self, weight: Tensor) -> Tensor:
        return cast(DTensor, weight).to_local()


class AllToAllDispatcher(nn.Module):
    """Sends each row to the rank that holds its expert, and its result back."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group

    # How many rows travel is known only at run time, which no compiled graph can hold.
    @torch.compiler.disable
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]: what disable is typed as
        self, x_TD: Tensor, counts_E: Tensor, experts: GroupedExperts
    ) -> Tensor:
        """out_TD. Rows are sorted by expert; counts_E: how many are of each, over all experts."""
        ep = self.group.size()
        received_E = torch.empty_like(counts_E)
        dist.all_to_all_single(received_E, counts_E.contiguous(), group=self.group)
        counts, received = torch.stack([counts_E, received_E]).view(2, ep, -1).sum(-1).tolist()

        x_TD = collectives.all_to_all_single_autograd(x_TD, received, counts, self.group)
        # They come sorted by sender, then expert; the experts want them sorted by expert.
        received_PL = received_E.view(ep, -1)
        num_local = received_PL.shape[1]
        expert_of_run = torch.arange(num_local, device=x_TD.device).repeat(ep)
        expert_T = expert_of_run.repeat_interleave(received_E, output_size=len(x_TD))
        order_T = expert_T.argsort(stable=True)
        place_T = order_T.argsort()
        sorted_TD = Rearrange.apply(x_TD, order_T, place_T, 1)
        out_TD = experts(sorted_TD, received_PL.sum(dim=0))
        out_TD = Rearrange.apply(out_TD, place_T, order_T, 1)
        return collectives.all_to_all_single_autograd(out_TD, counts, received, self.group)
