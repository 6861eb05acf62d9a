"""Attention over a block of keys, with what it takes to join blocks: softmax's log denominator.

Where the keys of a query are spread over ranks, each block gives an output and a log-sum-exp, and
`BlockSum` joins them exactly (arXiv:1805.02867; arXiv:2205.14135). In backward every block is
given the joined output and log-sum-exp, so that its shares are those of the whole softmax. The
kernels are SDPA's own, called by name since SDPA keeps the log-sum-exp to itself: FlashAttention on
CUDA, the memory-efficient kernel for float32, wide heads and old GPUs, the flash kernel on CPU.

Shapes: B batch, S queries, T keys, N query heads, K key and value heads, H query and key width,
V value width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten

WIDTH_MULTIPLE = 8
"""The CUDA kernels want heads whose width is a multiple of this."""
MAX_FLASH_WIDTH = 256


class BlockSum:
    """The softmax over all blocks of keys seen so far, in float32; blocks come in any order.

    The first block must be seen by every query.
    """

    def __init__(self) -> None:
        self.out_BNSV = torch.empty(0)
        self.lse_BNS = torch.empty(0)

    def add(self, out_BNSV: Tensor, lse_BNS: Tensor, queries: slice) -> None:
        """Join the block that the queries of a slice saw."""
        if not self.lse_BNS.numel():
            self.out_BNSV = out_BNSV.float().contiguous()
            self.lse_BNS = lse_BNS.contiguous()
            return
        old_lse, old_out = self.lse_BNS[:, :, queries], self.out_BNSV[:, :, queries]
        # The block's share of the joined denominator: e^lse / (e^lse + e^old).
        share = torch.sigmoid(lse_BNS - old_lse).unsqueeze(-1)
        old_out.lerp_(out_BNSV.float(), share)
        old_lse.copy_(torch.logaddexp(old_lse, lse_BNS))


def attend(
    q_BNSH: Tensor, k_BKTH: Tensor, v_BKTV: Tensor, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """(out_BNSV, lse_BNS float32) of one block. causal: S = T and query s sees keys up to s."""
    kernel, (q, k, v) = _prepare(q_BNSH, k_BKTH, v_BKTV)
    if kernel == "cpu":
        op = _aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = op(q, k, v, 0.0, causal, scale=scale)
    elif kernel == "flash":
        op = _aten._scaled_dot_product_flash_attention
        out, lse, *_ = op(q, k, v, 0.0, causal, False, scale=scale)
    else:
        op = _aten._scaled_dot_product_efficient_attention
        out, lse, *_ = op(q, k, v, None, True, 0.0, causal, scale=scale)
    return out[..., : v_BKTV.shape[-1]], lse[:, :, : q.shape[2]]


def attend_backward(
    grad_out_BNSV: Tensor,
    q_BNSH: Tensor,
    k_BKTH: Tensor,
    v_BKTV: Tensor,
    out_BNSV: Tensor,
    lse_BNS: Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from one block; out and lse are those over all blocks."""
    kernel, (q, k, v) = _prepare(q_BNSH, k_BKTH, v_BKTV)
    grad_out, out = (_widen(x, v.shape[-1]) for x in (grad_out_BNSV, out_BNSV))
    lse = lse_BNS.contiguous()
    if kernel == "cpu":
        op = _aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = op(grad_out, q, k, v, out, lse, 0.0, causal, scale=scale)
    elif kernel == "flash":
        # Nothing is dropped, so the kernel does not read the random state.
        seed = torch.empty(2, dtype=torch.uint64, device=q.device)
        offset = torch.empty((), dtype=torch.uint64, device=q.device)
        lengths: tuple[Any, ...] = (None, None, q.shape[2], k.shape[2])
        op = _aten._scaled_dot_product_flash_attention_backward
        grads = op(
            grad_out, q, k, v, out, lse, *lengths, 0.0, causal, seed, offset, scale=scale
        )  # fmt: skip
    else:
        # This kernel reads rows of the log-sum-exp in groups of 32.
        lse = F.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf)
        unused = torch.empty((), dtype=torch.int64, device=q.device)
        wanted = [True, True, True, False]
        op = _aten._scaled_dot_product_efficient_attention_backward
        grads = op(
            grad_out, q, k, v, None, out, lse, unused, unused, 0.0, wanted, causal, scale=scale
        )  # fmt: skip
    grad_q, grad_k, grad_v = grads[:3]
    grad_k, grad_v = _ungroup(grad_k, k_BKTH.shape[1]), _ungroup(grad_v, v_BKTV.shape[1])
    width, value_width = q_BNSH.shape[-1], v_BKTV.shape[-1]
    return grad_q[..., :width], grad_k[..., :width], grad_v[..., :value_width]


def _prepare(q: Tensor, k: Tensor, v: Tensor) -> tuple[str, tuple[Tensor, Tensor, Tensor]]:
    """The kernel, and its inputs: heads of one width, as many of keys as of queries if it needs."""
    widest = max(q.shape[-1], v.shape[-1])
    width = -(-widest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    kernel = _kernel(q, width)
    q, k, v = (_widen(x, width) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    if group > 1 and kernel != "flash":
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    return kernel, (q, k, v)


def _kernel(q: Tensor, width: int) -> str:
    if q.device.type == "cpu":
        return "cpu"
    fits = q.dtype != torch.float32 and width <= MAX_FLASH_WIDTH
    if fits and torch.cuda.get_device_capability(q.device) >= (8, 0):
        return "flash"
    return "efficient"


def _widen(x: Tensor, width: int) -> Tensor:
    """Zeros behind each head change no score; behind each value they are cut off again."""
    return F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x


def _ungroup(grad: Tensor, num_heads: int) -> Tensor:
    """The gradient of shared heads from that of their copies."""
    if grad.shape[1] == num_heads:
        return grad
    return grad.unflatten(1, (num_heads, -1)).sum(dim=2)
