"""The parameterless heart of attention: which keys a query sees, and the softmax over them.

What a layer sees beyond causality is said by a mask. A core makes its own kind (`mask`), the
decoder keeps one for all layers with the same window, and `forward` takes it back: [S, S] booleans
here, blocks in `flex_core`, borders of documents in `varlen_core`. Context parallelism and the
cache of keys replace cores by others with the same two functions.

Shapes: B batch, S queries, T keys, N query heads, K key and value heads, G = N / K, H query
and key width, V value width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionCore(nn.Module):
    """Causal softmax attention. Head counts come from the tensors: tensor parallelism splits them.

    scale: factor on query-key products. soft_cap: scores x become cap * tanh(x / cap); 0 = none.
    window: a query sees itself and the window - 1 tokens before it; 0 = all before it. has_sinks:
    `forward` is given sinks.
    """

    def __init__(
        self, *, scale: float, soft_cap: float, window: int, has_sinks: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.soft_cap, self.window = scale, soft_cap, window
        self.has_sinks = has_sinks

    def mask(self, seq_len: int, documents_BS: Tensor | None, device: torch.device) -> Any:
        """What `forward` needs to know for seq_len queries; None = nothing but causality.

        documents_BS: document number of each token, which sees only its own.
        """
        if self.is_plain(seq_len, documents_BS):
            return None
        tokens = range(seq_len)
        return visible_keys(tokens, tokens, self.window, documents_BS, device)

    def forward(
        self, q_BNSH: Tensor, k_BKSH: Tensor, v_BKSV: Tensor, mask: Any, sinks_N: Tensor | None
    ) -> Tensor:
        """out_BNSV. mask: of `self.mask`, for as many queries."""
        assert self.has_sinks == (sinks_N is not None)
        if mask is None:
            if q_BNSH.is_cuda and q_BNSH.dtype == torch.float32:
                # The one fused kernel for float32 there knows no grouped heads.
                k_BKSH, v_BKSV = self.repeated(q_BNSH, k_BKSH, v_BKSV)
            return F.scaled_dot_product_attention(
                q_BNSH,
                k_BKSH,
                v_BKSV,
                is_causal=True,
                scale=self.scale,
                enable_gqa=q_BNSH.shape[1] != k_BKSH.shape[1],
            )
        return self.masked(q_BNSH, k_BKSH, v_BKSV, mask, sinks_N)

    def is_plain(self, seq_len: int, documents_BS: Tensor | None) -> bool:
        """Whether nothing but causality is asked, which fused kernels know without a mask."""
        unwindowed = self.window == 0 or self.window >= seq_len
        return unwindowed and not self.soft_cap and not self.has_sinks and documents_BS is None

    def masked(
        self,
        q_BNSH: Tensor,
        k_BKTH: Tensor,
        v_BKTV: Tensor,
        mask_BST: Tensor,
        sinks_N: Tensor | None,
    ) -> Tensor:
        """out_BNSV of queries that see the keys a mask says, of which there is one at least."""
        if self.soft_cap or sinks_N is not None:
            return self.written_out(q_BNSH, k_BKTH, v_BKTV, mask_BST, sinks_N)
        # No fused kernel takes a mask and grouped heads at once.
        k_BNTH, v_BNTV = self.repeated(q_BNSH, k_BKTH, v_BKTV)
        return F.scaled_dot_product_attention(
            q_BNSH, k_BNTH, v_BNTV, attn_mask=mask_BST.unsqueeze(1), scale=self.scale
        )

    def repeated(self, q_BNSH: Tensor, *kv_BKTX: Tensor) -> tuple[Tensor, ...]:
        """Keys and values with a head for each query head."""
        return tuple(x.repeat_interleave(q_BNSH.shape[1] // x.shape[1], dim=1) for x in kv_BKTX)

    def written_out(
        self,
        q_BNSH: Tensor,
        k_BKTH: Tensor,
        v_BKTV: Tensor,
        mask_BST: Tensor,
        sinks_N: Tensor | None,
    ) -> Tensor:
        """For soft caps and sinks, which no fused kernel knows; softmax in float32."""
        grouped = (k_BKTH.shape[1], -1)
        q_BKGSH = q_BNSH.unflatten(1, grouped)
        scores_BKGST = (q_BKGSH @ k_BKTH.unsqueeze(2).transpose(-2, -1)).float() * self.scale
        if self.soft_cap:
            scores_BKGST = self.soft_cap * torch.tanh(scores_BKGST / self.soft_cap)
        scores_BKGST = scores_BKGST.masked_fill(~mask_BST[:, None, None], -torch.inf)
        shares_BKGST = scores_BKGST.softmax(dim=-1).type_as(v_BKTV)
        out_BNSV = (shares_BKGST @ v_BKTV.unsqueeze(2)).flatten(1, 2)
        if sinks_N is None:
            return out_BNSV
        return with_sinks(out_BNSV, scores_BKGST.logsumexp(dim=-1).flatten(1, 2), sinks_N)


def with_sinks(out_BNSV: Tensor, lse_BNS: Tensor, sinks_N: Tensor) -> Tensor:
    """Attention as if each head had one more key of this logit and no value: exp(sink) joins the
    denominator, whose logarithm without it is lse."""
    share_BNS = torch.sigmoid(lse_BNS - sinks_N.float()[:, None])
    return out_BNSV * share_BNS.unsqueeze(-1).type_as(out_BNSV)


def visible_keys(
    queries: range, keys: range, window: int, documents_BS: Tensor | None, device: torch.device
) -> Tensor:
    """bool [B or 1, S, T]: whether each query sees each key, both given by their positions.

    documents_BS: of the whole sequences.
    """
    # Only booleans are ever S x T: distances as numbers would take 8 times as much.
    query_S1 = torch.arange(queries.start, queries.stop, device=device).unsqueeze(1)
    key_T = torch.arange(keys.start, keys.stop, device=device)
    mask_ST = query_S1 >= key_T
    if window:
        mask_ST &= query_S1 - window < key_T
    if documents_BS is None:
        return mask_ST.unsqueeze(0)
    query_BS = documents_BS[:, queries.start : queries.stop]
    key_BT = documents_BS[:, keys.start : keys.stop]
    return (query_BS[:, :, None] == key_BT[:, None, :]).logical_and_(mask_ST)
