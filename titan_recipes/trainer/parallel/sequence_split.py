"""Which part of each sequence a rank of `cp` holds.

With "headtail" a sequence is cut into 2 cp chunks and rank r holds chunks r and 2 cp - 1 - r: under
a causal mask late tokens see more keys than early ones, and so all ranks have the same work
(arXiv:2407.21783, section 3.3.2). Positions stay those of the whole sequence: each rank's rotary
table holds the rows of its own tokens.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from titan_recipes.config.job import Job
from titan_recipes.trainer.data.loader import Batch
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.parallel.mesh import World


@dataclass(frozen=True, slots=True)
class SequenceSplit:
    """Which tokens of a sequence a rank holds. headtail: two chunks each, else one in order."""

    cp: int
    rank: int
    headtail: bool

    def spans(self, seq_len: int) -> list[range]:
        """The positions that this rank holds, in its order."""
        if not self.headtail:
            part = seq_len // self.cp
            return [range(self.rank * part, (self.rank + 1) * part)]
        chunk = seq_len // (2 * self.cp)
        numbers = (self.rank, 2 * self.cp - 1 - self.rank)
        return [range(number * chunk, (number + 1) * chunk) for number in numbers]

    def take(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's part of a tensor that holds the whole sequence along `dim`."""
        parts = [whole.narrow(dim, s.start, len(s)) for s in self.spans(whole.shape[dim])]
        return torch.cat(parts, dim=dim)

    def in_order(self, parts: list[Tensor], dim: int) -> Tensor:
        """The whole sequence from the parts of all ranks."""
        if not self.headtail:
            return torch.cat(parts, dim=dim)
        heads, tails = zip(*(part.chunk(2, dim=dim) for part in parts), strict=True)
        return torch.cat([*heads, *reversed(tails)], dim=dim)

    def seen(self, owner: int, part: int) -> tuple[slice, slice, bool] | None:
        """(queries here, keys of `owner` that all of them see, causal); None if they see none.

        part: tokens of a rank. A rank's tokens are in order, so among its own causality is that of
        the local order. With headtail an earlier rank's head lies before all tokens here and its
        tail after; all tokens of a later rank lie between head and tail here.
        """
        everything, half = slice(0, part), part // 2
        if owner == self.rank:
            return everything, everything, True
        if not self.headtail:
            return (everything, everything, False) if owner < self.rank else None
        if owner < self.rank:
            return everything, slice(0, half), False
        return slice(half, part), everything, False


def sequence_split(job: Job, world: World) -> SequenceSplit | None:
    """This rank's; None where every rank holds whole sequences."""
    if world.cp_mesh is None:
        return None
    headtail = job.parallelism.context_parallel_load_balancer == "headtail"
    return SequenceSplit(world.cp_mesh.size(), world.cp_mesh.get_local_rank(), headtail)


def take_part(batch: Batch, split: SequenceSplit | None) -> Batch:
    """This rank's tokens and labels of a batch; document numbers stay those of whole sequences,
    since its queries see keys of all ranks."""
    if split is None:
        return batch
    tokens_BS, labels_BS = split.take(batch.tokens_BS, 1), split.take(batch.labels_BS, 1)
    return replace(batch, tokens_BS=tokens_BS, labels_BS=labels_BS)


def take_positions(model: Decoder, split: SequenceSplit | None) -> None:
    """Keep the rotary rows of this rank's positions, in place; after `model.init_buffers`."""
    if split is not None:
        for name, table_SH in list(model.rope.named_buffers()):
            setattr(model.rope, name, split.take(table_SH, 0))
