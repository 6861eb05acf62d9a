"""The parameterless heart of attention: which keys a query sees, and the softmax over them.

Context parallelism replaces this module by one with the same forward.

Shapes: B batch, S queries, T keys, N query heads, K key and value heads, G = N / K, H query
and key width, V value width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionCore(nn.Module):
    """Causal softmax attention. Head counts come from the tensors: tensor parallelism splits them.

    scale: factor on query-key products. soft_cap: scores x become cap * tanh(x / cap); 0 = none.
    window: a query sees itself and the window - 1 tokens before it; 0 = all before it.
    """

    def __init__(self, *, scale: float, soft_cap: float, window: int) -> None:
        super().__init__()
        self.scale, self.soft_cap, self.window = scale, soft_cap, window

    def forward(
        self,
        q_BNSH: Tensor,
        k_BKSH: Tensor,
        v_BKSV: Tensor,
        documents_BS: Tensor | None = None,
        sinks_N: Tensor | None = None,
    ) -> Tensor:
        """out_BNSV. documents_BS: document number of each token, which sees only its own."""
        seq_len = q_BNSH.shape[2]
        if self.is_plain(seq_len, documents_BS, sinks_N):
            return F.scaled_dot_product_attention(
                q_BNSH,
                k_BKSH,
                v_BKSV,
                is_causal=True,
                scale=self.scale,
                enable_gqa=q_BNSH.shape[1] != k_BKSH.shape[1],
            )
        tokens = range(seq_len)
        mask_BSS = visible_keys(tokens, tokens, self.window, documents_BS, q_BNSH.device)
        return self.masked(q_BNSH, k_BKSH, v_BKSV, mask_BSS, sinks_N)

    def is_plain(self, seq_len: int, documents_BS: Tensor | None, sinks_N: Tensor | None) -> bool:
        """Whether nothing but causality is asked, which fused kernels know without a mask."""
        unwindowed = self.window == 0 or self.window >= seq_len
        return unwindowed and not self.soft_cap and sinks_N is None and documents_BS is None

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
        group = q_BNSH.shape[1] // k_BKTH.shape[1]
        k_BNTH, v_BNTV = (x.repeat_interleave(group, dim=1) for x in (k_BKTH, v_BKTV))
        return F.scaled_dot_product_attention(
            q_BNSH, k_BNTH, v_BNTV, attn_mask=mask_BST.unsqueeze(1), scale=self.scale
        )

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
        out_BKGSV = shares_BKGST @ v_BKTV.unsqueeze(2)
        if sinks_N is not None:
            # A sink is one more logit with nothing behind it: exp(s) joins the denominator.
            total_BKGS1 = scores_BKGST.logsumexp(dim=-1, keepdim=True)
            sinks_KG11 = sinks_N.float().unflatten(0, grouped)[..., None, None]
            out_BKGSV = out_BKGSV * torch.sigmoid(total_BKGS1 - sinks_KG11).type_as(v_BKTV)
        return out_BKGSV.flatten(1, 2)


def visible_keys(
    queries: range, keys: range, window: int, documents_BS: Tensor | None, device: torch.device
) -> Tensor:
    """bool [B or 1, S, T]: whether each query sees each key, both given by their positions.

    documents_BS: of the whole sequences.
    """
    query_S = torch.arange(queries.start, queries.stop, device=device)
    key_T = torch.arange(keys.start, keys.stop, device=device)
    distance_ST = query_S[:, None] - key_T
    mask_ST = distance_ST >= 0
    if window:
        mask_ST = mask_ST & (distance_ST < window)
    if documents_BS is None:
        return mask_ST.unsqueeze(0)
    query_BS = documents_BS[:, queries.start : queries.stop]
    key_BT = documents_BS[:, keys.start : keys.stop]
    return mask_ST & (query_BS[:, :, None] == key_BT[:, None, :])
