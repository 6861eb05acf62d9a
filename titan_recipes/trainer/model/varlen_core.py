"""Attention of packed documents by FlashAttention's kernel for sequences of many lengths.

A batch is one row of B * S tokens, cut where documents begin: each document is attended as if it
were alone, and what it must not see costs nothing. CUDA only, bfloat16 or float16.

Importing this starts torch's compiler, which other jobs can do without.

Shapes: B batch, S sequence, T = B * S tokens, N query heads, K key and value heads, H query and key
width, V value width, the same here, E documents + 1.
"""

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from titan_recipes.trainer.model.attention_core import AttentionCore

_HAS_SWITCH = "enable_gqa" in inspect.signature(varlen_attn).parameters
GROUPED: dict[str, Any] = {"enable_gqa": True} if _HAS_SWITCH else {}
"""Where the function has this switch (torch 2.12, 2.13), grouped heads need it."""


class PackedDocuments(NamedTuple):
    """borders_E: int32, the first token of each document, and T."""

    borders_E: Tensor


class VarlenCore(AttentionCore):
    """AttentionCore for documents and windows; without documents it is one."""

    def mask(self, seq_len: int, documents_BS: Tensor | None, device: torch.device) -> Any:
        """PackedDocuments; without documents as AttentionCore's."""
        if documents_BS is None:
            return super().mask(seq_len, None, device)
        return PackedDocuments(document_borders(documents_BS))

    def forward(
        self, q_BNSH: Tensor, k_BKSH: Tensor, v_BKSV: Tensor, mask: Any, sinks_N: Tensor | None
    ) -> Tensor:
        """out_BNSV. mask: of `self.mask`."""
        if not isinstance(mask, PackedDocuments):
            return super().forward(q_BNSH, k_BKSH, v_BKSV, mask, sinks_N)
        assert not self.soft_cap, "config.attention refuses what the kernel does not know"
        assert not self.has_sinks
        batch, _, seq_len, _ = q_BNSH.shape
        q_TNH, k_TKH, v_TKH = (x.transpose(1, 2).flatten(0, 1) for x in (q_BNSH, k_BKSH, v_BKSV))
        out_TNH: Any = varlen_attn(
            q_TNH,
            k_TKH,
            v_TKH,
            mask.borders_E,
            mask.borders_E,
            # A bound on a document's length; the longest one itself would change with each batch.
            seq_len,
            seq_len,
            scale=self.scale,
            window_size=(self.window - 1 if self.window else -1, 0),
            **GROUPED,
        )
        return out_TNH.unflatten(0, (batch, seq_len)).transpose(1, 2)


def document_borders(documents_BS: Tensor) -> Tensor:
    """borders_E: where the number changes, at each sequence's begin, and at the end."""
    begins_BS = torch.ones_like(documents_BS, dtype=torch.bool)
    begins_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
    begins_E = begins_BS.flatten().nonzero().flatten()
    return F.pad(begins_E, (0, 1), value=documents_BS.numel()).int()
