"""Context parallelism: every rank of `cp` holds a part of each sequence; keys and values travel.

Plain causal attention meets the keys of one rank after the other and joins the blocks
(`block_attention`). They come by one all-gather ("allgather"), or hop from rank to rank while the
block before is computed ("alltoall": ring attention, arXiv:2310.01889), which holds the keys of
two ranks instead of all. Nothing of other ranks is kept for backward, where keys travel again and
their gradients return to their owner. What a mask must say, windows and documents, and what no
fused kernel knows, soft caps and sinks, is the local core's: it gets the gathered keys.

Shapes: B batch, S a rank's part of the sequence, T keys, N query heads, K key and value heads,
H query and key width, V value width.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from titan_recipes.config.job import Job
from titan_recipes.trainer.model.attention_core import AttentionCore, visible_keys
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.parallel.block_attention import BlockSum, attend, attend_backward
from titan_recipes.trainer.parallel.mesh import World
from titan_recipes.trainer.parallel.sequence_split import SequenceSplit, sequence_split


def apply_context_parallel(model: Decoder, job: Job, world: World) -> None:
    """Give every layer an attention core that sees the keys of all cp ranks, in place."""
    split = sequence_split(job, world)
    if split is None:
        return
    assert world.cp_mesh is not None
    name = world.cp_mesh.get_group().group_name
    ring = job.parallelism.context_parallel_rotate_method == "alltoall"
    for block in model.layers.values():
        attention: Any = block.attention
        attention.core = ContextParallelCore(attention.core, split, name, ring=ring)


# --- attention ------------------------------------------------------------------------------------


class ContextParallelCore(nn.Module):
    """Attention of this rank's queries over the keys of all ranks of a group; see AttentionCore."""

    def __init__(
        self, local: AttentionCore, split: SequenceSplit, group_name: str, *, ring: bool
    ) -> None:
        super().__init__()
        self.local, self.window, self.ring = local, local.window, ring
        self.split, self.group_name = split, group_name

    def mask(
        self, seq_len: int, documents_BT: Tensor | None, device: torch.device
    ) -> list[Tensor] | None:
        """For each of this rank's spans its mask_BST; documents_BT: of the whole sequences, as
        `take_part` leaves them."""
        whole = self.split.cp * seq_len
        if self.local.is_plain(whole, documents_BT):
            return None
        assert not self.ring, "config.splits refuses what ring attention can't mask"
        return [
            visible_keys(queries, self.keys(queries), self.window, documents_BT, device)
            for queries in self.split.spans(whole)
        ]

    def keys(self, queries: range) -> range:
        """What any of these queries may see."""
        oldest = max(0, queries.start - self.window + 1) if self.window else 0
        return range(oldest, queries.stop)

    def forward(
        self,
        q_BNSH: Tensor,
        k_BKSH: Tensor,
        v_BKSV: Tensor,
        masks: list[Tensor] | None,
        sinks_N: Tensor | None,
    ) -> Tensor:
        """out_BNSV. masks: of `self.mask`."""
        if masks is None:
            options = (self.local.scale, self.group_name, self.split.headtail, self.ring)
            return causal_attention(q_BNSH, k_BKSH, v_BKSV, *options)[0]
        k_BKTH, v_BKTV = (self.gathered(x) for x in (k_BKSH, v_BKSV))
        spans, parts = self.split.spans(k_BKTH.shape[2]), list[Tensor]()
        queries_BNSH = q_BNSH.chunk(len(spans), dim=2)
        for queries, q, mask_BST in zip(spans, queries_BNSH, masks, strict=True):
            keys = self.keys(queries)
            k, v = (x[:, :, keys.start : keys.stop] for x in (k_BKTH, v_BKTV))
            parts.append(self.local.masked(q, k, v, mask_BST, sinks_N))
        return torch.cat(parts, dim=2)

    def gathered(self, part: Tensor) -> Tensor:
        """The keys or values of whole sequences; their gradients are summed to their owner."""
        parts = list(gather_parts(part, self.group_name).unbind(0))
        return self.split.in_order(parts, dim=2)


def _split_of(group: dist.ProcessGroup, headtail: bool) -> SequenceSplit:
    return SequenceSplit(group.size(), group.rank(), headtail)


# torch 2.13 gave these two new names and warns of the old ones.
_RENAMED = hasattr(dist, "all_gather_single")
_all_gather: Any = getattr(dist, "all_gather_single" if _RENAMED else "all_gather_into_tensor")
_reduce_scatter: Any = getattr(
    dist, "reduce_scatter_single" if _RENAMED else "reduce_scatter_tensor"
)


def _group(name: Any) -> dist.ProcessGroup:
    return dist.distributed_c10d._resolve_process_group(name)


# Custom operators are one node to torch.compile, and one output that selective activation
# checkpointing can keep.
@torch.library.custom_op("titan_recipes::context_parallel_attention", mutates_args=())
def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, group_name: str, headtail: bool, ring: bool
) -> tuple[Tensor, Tensor]:
    """(out_BNSV, lse_BNS): causal attention of this rank's q over the keys of a group."""
    group, total = _group(group_name), BlockSum()
    split, part = _split_of(group, headtail), q.shape[2]
    for owner, k_block, v_block in _arriving(k, v, group, ring=ring):
        if (pair := split.seen(owner, part)) is not None:
            queries, keys, causal = pair
            out, lse = attend(
                q[:, :, queries], k_block[:, :, keys], v_block[:, :, keys],
                causal=causal, scale=scale,
            )  # fmt: skip
            total.add(out, lse, queries)
    return total.out_BNSV.to(q.dtype), total.lse_BNS


@causal_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, scale: float, group_name: str, headtail: bool, ring: bool
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("titan_recipes::context_parallel_attention_backward", mutates_args=())
def causal_attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    scale: float, group_name: str, headtail: bool, ring: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q and of this rank's k and v, summed in float32."""
    group = _group(group_name)
    split, part = _split_of(group, headtail), q.shape[2]
    grad_q = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    returning = (_Ring if ring else _Gathered)(k, v, group)
    for owner, k_block, v_block in _arriving(k, v, group, ring=ring):
        # Also where nothing is seen: in the ring, what arrived must go on.
        grads, keys = list[Tensor](), slice(0)
        if (pair := split.seen(owner, part)) is not None:
            queries, keys, causal = pair
            part_q, *grads = attend_backward(
                *(x[:, :, queries] for x in (grad_out, q)),
                *(x[:, :, keys] for x in (k_block, v_block)),
                *(x[:, :, queries] for x in (out, lse)),
                causal=causal, scale=scale,
            )  # fmt: skip
            grad_q[:, :, queries] += part_q
        returning.add(owner, keys, grads)
    grad_k, grad_v = returning.own()
    # Copies: they are views of one tensor, which an operator must not return.
    return grad_q.to(q.dtype), grad_k.to(k.dtype, copy=True), grad_v.to(v.dtype, copy=True)


@causal_attention_backward.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    scale: float, group_name: str, headtail: bool, ring: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    return grad_q, grad_k, grad_v


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Any, ...]:
    grads = causal_attention_backward(grad_out, *ctx.saved_tensors, *ctx.options)
    return *grads, None, None, None, None


causal_attention.register_autograd(_backward, setup_context=_keep_for_backward)


# --- how keys travel ------------------------------------------------------------------------------


@torch.library.custom_op("titan_recipes::gather_parts", mutates_args=())
def gather_parts(part: Tensor, group_name: str) -> Tensor:
    """[ranks, *part.shape]; in backward each rank gets the sum of its part's gradients."""
    group = _group(group_name)
    parts = part.new_empty(group.size(), *part.shape)
    _all_gather(parts.view(-1), part.flatten(), group=group)
    return parts


@gather_parts.register_fake
def _(part: Tensor, group_name: str) -> Tensor:
    return part.new_empty(_group(group_name).size(), *part.shape)


@torch.library.custom_op("titan_recipes::scatter_sum", mutates_args=())
def scatter_sum(parts: Tensor, group_name: str) -> Tensor:
    """The sum over ranks of what they have for this rank, taken in float32."""
    own = torch.empty(parts[0].numel(), dtype=torch.float32, device=parts.device)
    _reduce_scatter(own, parts.flatten().float(), group=_group(group_name))
    return own.to(parts.dtype).view(parts.shape[1:])


@scatter_sum.register_fake
def _(parts: Tensor, group_name: str) -> Tensor:
    return parts.new_empty(parts.shape[1:])


def _keep_name(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.group_name = inputs


def _sum_to_owner(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return scatter_sum(grad, ctx.group_name), None


gather_parts.register_autograd(_sum_to_owner, setup_context=_keep_name)


def _pack(k: Tensor, v: Tensor) -> Tensor:
    return torch.cat([k.flatten(), v.flatten()])


def _unpack(flat: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the shapes of k and v."""
    return flat[: k.numel()].view(k.shape), flat[k.numel() :].view(v.shape)


def _send_on(flat: Tensor, group: dist.ProcessGroup, *, tag: int) -> Callable[[], Tensor]:
    """Start sending to the next rank; the result waits for what the rank before sent."""
    arrived, rank, cp = torch.empty_like(flat), group.rank(), group.size()
    requests = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, flat, group=group, group_peer=(rank + 1) % cp, tag=tag),
            dist.P2POp(dist.irecv, arrived, group=group, group_peer=(rank - 1) % cp, tag=tag),
        ]
    )

    def wait() -> Tensor:
        for request in requests:
            request.wait()
        return arrived

    return wait


def _arriving(
    k: Tensor, v: Tensor, group: dist.ProcessGroup, *, ring: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(owner, its k, its v): this rank's first, which hides the wait, then back around the ring."""
    rank, cp = group.rank(), group.size()
    packed = _pack(k, v)
    if ring:
        for step in range(cp):
            wait = _send_on(packed, group, tag=0) if step < cp - 1 else None
            yield (rank - step) % cp, *_unpack(packed, k, v)
            if wait is not None:
                packed = wait()
        return
    everything = packed.new_empty(cp, packed.numel())
    request = _all_gather(everything.view(-1), packed, group=group, async_op=True)
    yield rank, k, v
    assert request is not None
    request.wait()
    for step in range(1, cp):
        owner = (rank - step) % cp
        yield owner, *_unpack(everything[owner], k, v)


class _Gathered:
    """Gradients of the keys of all ranks, summed to their owners at the end."""

    def __init__(self, k: Tensor, v: Tensor, group: dist.ProcessGroup) -> None:
        self.k, self.v, self.group = k, v, group
        count = k.numel() + v.numel()
        self.grads = torch.zeros(group.size(), count, dtype=torch.float32, device=k.device)

    def add(self, owner: int, keys: slice, grads: list[Tensor]) -> None:
        """Add what this rank has for a slice of the keys of `owner`; grads may be []."""
        _add(self.grads[owner], self.k, self.v, keys, grads)

    def own(self) -> tuple[Tensor, Tensor]:
        """The sums over all ranks for this rank's k and v."""
        own = torch.empty_like(self.grads[0])
        _reduce_scatter(own, self.grads.view(-1), group=self.group)
        return _unpack(own, self.k, self.v)


class _Ring:
    """Gradients that follow their keys around the ring, one step behind, and so come home."""

    def __init__(self, k: Tensor, v: Tensor, group: dist.ProcessGroup) -> None:
        self.k, self.v, self.group = k, v, group
        count = k.numel() + v.numel()
        self.grads = torch.zeros(count, dtype=torch.float32, device=k.device)
        self.wait: Callable[[], Tensor] | None = None

    def add(self, owner: int, keys: slice, grads: list[Tensor]) -> None:
        """As in _Gathered; owners in the order in which their keys arrive."""
        if self.wait is not None:
            self.grads = self.wait()
        _add(self.grads, self.k, self.v, keys, grads)
        self.wait = _send_on(self.grads, self.group, tag=1)

    def own(self) -> tuple[Tensor, Tensor]:
        """As in _Gathered."""
        assert self.wait is not None
        return _unpack(self.wait(), self.k, self.v)


def _add(flat: Tensor, k: Tensor, v: Tensor, keys: slice, grads: list[Tensor]) -> None:
    for whole, part in zip(_unpack(flat, k, v), grads, strict=False):
        whole[:, :, keys] += part
