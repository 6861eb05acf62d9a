"""The parameterless heart of attention: which keys a query sees, and the softmax over them.

Context parallelism replaces this module by one with the same forward.

Shapes: B batch, S sequence, T keys (= S), N query heads, K key and value heads, G = N / K, H query
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
        if self.soft_cap or sinks_N is not None:
            mask_BSS = visible_keys(seq_len, self.window, documents_BS, q_BNSH.device)
            return self.written_out(q_BNSH, k_BKSH, v_BKSV, mask_BSS, sinks_N)
        if documents_BS is None and (self.window == 0 or self.window >= seq_len):
            return F.scaled_dot_product_attention(
                q_BNSH,
                k_BKSH,
                v_BKSV,
                is_causal=True,
                scale=self.scale,
                enable_gqa=q_BNSH.shape[1] != k_BKSH.shape[1],
            )
        mask_BSS = visible_keys(seq_len, self.window, documents_BS, q_BNSH.device)
        # No fused kernel takes a mask and grouped heads at once.
        group = q_BNSH.shape[1] // k_BKSH.shape[1]
        k_BNSH, v_BNSV = (x.repeat_interleave(group, dim=1) for x in (k_BKSH, v_BKSV))
        return F.scaled_dot_product_attention(
            q_BNSH, k_BNSH, v_BNSV, attn_mask=mask_BSS.unsqueeze(1), scale=self.scale
        )

    def written_out(
        self,
        q_BNSH: Tensor,
        k_BKSH: Tensor,
        v_BKSV: Tensor,
        mask_BSS: Tensor,
        sinks_N: Tensor | None,
    ) -> Tensor:
        """For soft caps and sinks, which no fused kernel knows; softmax in float32."""
        grouped = (k_BKSH.shape[1], -1)
        q_BKGSH = q_BNSH.unflatten(1, grouped)
        scores_BKGST = (q_BKGSH @ k_BKSH.unsqueeze(2).transpose(-2, -1)).float() * self.scale
        if self.soft_cap:
            scores_BKGST = self.soft_cap * torch.tanh(scores_BKGST / self.soft_cap)
        scores_BKGST = scores_BKGST.masked_fill(~mask_BSS[:, None, None], -torch.inf)
        shares_BKGST = scores_BKGST.softmax(dim=-1).type_as(v_BKSV)
        out_BKGSV = shares_BKGST @ v_BKSV.unsqueeze(2)
        if sinks_N is not None:
            # A sink is one more logit with nothing behind it: exp(s) joins the denominator.
            total_BKGS1 = scores_BKGST.logsumexp(dim=-1, keepdim=True)
            sinks_KG11 = sinks_N.float().unflatten(0, grouped)[..., None, None]
            out_BKGSV = out_BKGSV * torch.sigmoid(total_BKGS1 - sinks_KG11).type_as(v_BKSV)
        return out_BKGSV.flatten(1, 2)


def visible_keys(
    seq_len: int, window: int, documents_BS: Tensor | None, device: torch.device
) -> Tensor:
    """bool [B or 1, S, S]: whether query s sees key t."""
    position = torch.arange(seq_len, device=device)
    distance_SS = position[:, None] - position
    mask_SS = distance_SS >= 0
    if window:
        mask_SS = mask_SS & (distance_SS < window)
    if documents_BS is None:
        return mask_SS.unsqueeze(0)
    return mask_SS & (documents_BS[:, :, None] == documents_BS[:, None, :])
