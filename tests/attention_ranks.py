"""Context-parallel attention on real ranks, against the same attention in one piece.

As a script, `torchrun attention_ranks.py FILE`, it is one rank; rank 0 writes FILE: JSON, case ->
the largest absolute difference of the output and of each gradient.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from training import leave_group

from titan_recipes.trainer.model.attention_core import AttentionCore
from titan_recipes.trainer.parallel.context_parallel import ContextParallelCore
from titan_recipes.trainer.parallel.sequence_split import SequenceSplit

BATCH, SEQ_LEN = 2, 32
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain in order": {"headtail": False},
    "ring": {"ring": True},
    "ring in order": {"ring": True, "headtail": False},
    "ring latent": {"ring": True, "kv_heads": 4, "value_width": 6},
    "window wider than the sequence": {"ring": True, "window": SEQ_LEN},
    "window": {"window": 5},
    "window in order": {"window": 5, "headtail": False},
    "documents": {"documents": True},
    "documents in order": {"documents": True, "headtail": False},
    "documents and window": {"documents": True, "window": 9},
    "soft cap": {"soft_cap": 2.0},
    "sinks": {"sinks": True},
    "everything": {"documents": True, "window": 7, "soft_cap": 2.0, "sinks": True},
}


def difference(
    rank: int,
    *,
    headtail: bool = True,
    ring: bool = False,
    kv_heads: int = 2,
    value_width: int = 12,
    window: int = 0,
    soft_cap: float = 0.0,
    documents: bool = False,
    sinks: bool = False,
) -> float:
    """The largest absolute difference on this rank."""
    group = dist.group.WORLD
    assert group is not None
    torch.manual_seed(1)
    heads, width = 4, 12
    q = torch.randn(BATCH, heads, SEQ_LEN, width, requires_grad=True)
    k = torch.randn(BATCH, kv_heads, SEQ_LEN, width, requires_grad=True)
    v = torch.randn(BATCH, kv_heads, SEQ_LEN, value_width, requires_grad=True)
    sinks_N = torch.randn(heads, requires_grad=True) if sinks else None
    grad = torch.randn(BATCH, heads, SEQ_LEN, value_width)
    # Two borders in each sequence, none of them at a rank's.
    borders = torch.tensor([[3, 21], [10, 11]])
    places = torch.arange(SEQ_LEN)
    documents_BS = (places[None, :, None] >= borders[:, None, :]).sum(-1) if documents else None
    local = AttentionCore(scale=0.3, soft_cap=soft_cap, window=window, has_sinks=sinks)
    whole = local(q, k, v, local.mask(SEQ_LEN, documents_BS, q.device), sinks_N)
    inputs = [q, k, v] if sinks_N is None else [q, k, v, sinks_N]
    expected = [whole, *torch.autograd.grad(whole, inputs, grad)]

    split = SequenceSplit(group.size(), rank, headtail)
    parts = [split.take(x.detach(), 2).requires_grad_() for x in (q, k, v)]
    core = ContextParallelCore(local, split, group.group_name, ring=ring)
    masks = core.mask(SEQ_LEN // group.size(), documents_BS, q.device)
    out = core(*parts, masks, sinks_N)
    own = [*parts] if sinks_N is None else [*parts, sinks_N]
    found = [out, *torch.autograd.grad(out, own, split.take(grad, 2))]
    if sinks_N is not None:
        # Every rank holds the whole parameter; FSDP sums its gradient.
        dist.all_reduce(found[-1])

    def part(x: Tensor) -> Tensor:
        return split.take(x, 2) if x.dim() == 4 else x

    assert whole.detach().abs().max() > 0.1
    return max((a - part(b)).abs().max().item() for a, b in zip(found, expected, strict=True))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    worst = torch.tensor([difference(rank, **options) for options in CASES.values()])
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(dict(zip(CASES, worst.tolist(), strict=True))))
    leave_group()
