"""A cache of keys and values: a text is continued token by token, each computed once.

Laid over a decoder from outside: each attention's core is replaced by one that keeps what it was
given, and the rotary tables hold the rows of the tokens that come next. llama3_debug gives 400
tokens in 12.6 s on one busy core, 54.6 s without.

Shapes: B batch, S new tokens, T all tokens so far, N query heads, K key and value heads, H query
and key width, V value width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titan_recipes.trainer.model.attention_core import AttentionCore, visible_keys
from titan_recipes.trainer.model.decoder import Decoder


class CachedCore(nn.Module):
    """The core of one layer, and the keys and values of all tokens that it has seen."""

    def __init__(self, local: AttentionCore, length: int) -> None:
        """length: tokens there is room for."""
        super().__init__()
        self.local, self.window, self.length, self.seen = local, local.window, length, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def mask(
        self, seq_len: int, documents_BS: Tensor | None, device: torch.device
    ) -> Tensor | None:
        """bool [1, S, T] for the next seq_len tokens; None = it is only causality's."""
        assert documents_BS is None, "one text has one document"
        total = self.seen + seq_len
        if self.local.is_plain(total, None) and (self.seen == 0 or seq_len == 1):
            return None
        return visible_keys(range(self.seen, total), range(total), self.window, None, device)

    def forward(
        self,
        q_BNSH: Tensor,
        k_BKSH: Tensor,
        v_BKSV: Tensor,
        mask: Tensor | None,
        sinks_N: Tensor | None,
    ) -> Tensor:
        """out_BNSV of the new tokens, which see all before them."""
        new = q_BNSH.shape[2]
        first, self.seen = self.seen, self.seen + new
        k_BKTH, v_BKTV = self._keep(k_BKSH, v_BKSV, first)
        if mask is not None:
            return self.local.masked(q_BNSH, k_BKTH, v_BKTV, mask, sinks_N)
        return F.scaled_dot_product_attention(
            q_BNSH,
            k_BKTH,
            v_BKTV,
            is_causal=new > 1,
            scale=self.local.scale,
            enable_gqa=q_BNSH.shape[1] != k_BKTH.shape[1],
        )

    def _keep(self, k_BKSH: Tensor, v_BKSV: Tensor, first: int) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            batch, heads = k_BKSH.shape[:2]
            self.keys = k_BKSH.new_empty(batch, heads, self.length, k_BKSH.shape[3])
            self.values = v_BKSV.new_empty(batch, heads, self.length, v_BKSV.shape[3])
        self.keys[:, :, first : self.seen] = k_BKSH
        self.values[:, :, first : self.seen] = v_BKSV
        return self.keys[:, :, : self.seen], self.values[:, :, : self.seen]


class CachedDecoder:
    """A decoder that is given a text piece by piece."""

    def __init__(self, model: Decoder) -> None:
        """model: its rotary tables are as long as the longest text; it is changed in place."""
        self.model = model
        self._seen = 0
        self._tables = dict(model.rope.named_buffers())
        for module in list(model.modules()):
            core = getattr(module, "core", None)
            if isinstance(core, AttentionCore):
                setattr(module, "core", CachedCore(core, model.seq_len))  # noqa: B010

    @torch.no_grad()
    def next_logits(self, tokens_BS: Tensor) -> Tensor:
        """logits_BV after the last of the new tokens."""
        first, self._seen = self._seen, self._seen + tokens_BS.shape[1]
        for name, table_SH in self._tables.items():
            setattr(self.model.rope, name, table_SH[first : self._seen])
        return self.model(tokens_BS)[:, -1]
