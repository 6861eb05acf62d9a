"""Attention's projections: grouped-query (arXiv:2305.13245) and latent (arXiv:2405.04434).

Both end in the same `core`; its mask is made once for many layers. Head counts are left to views
(-1): under tensor parallelism a rank holds N / tp heads.

Shapes: B batch, S sequence, D model, N query heads, K key and value heads, H query and key head,
R its rotated part, V value head, L latent.
"""

from typing import Any

import torch
from torch import Tensor, nn

from titan_recipes.config.flavor import layer_window
from titan_recipes.config.schema import LatentAttention, Model
from titan_recipes.trainer.model.attention_core import AttentionCore
from titan_recipes.trainer.model.norm import build_norm
from titan_recipes.trainer.model.rope import apply_rope, score_temperature


def build_core(sizes: Model, layer: int) -> AttentionCore:
    """The core of a layer; with a sliding window, each global_every-th layer sees everything."""
    scale = sizes.attention_scale or sizes.head_dim**-0.5
    return core_type(sizes.attention_backend)(
        scale=scale * score_temperature(sizes.rope_scaling),
        soft_cap=sizes.attention_soft_cap,
        window=layer_window(sizes, layer),
        has_sinks=sizes.attention_sinks,
    )


def core_type(backend: str) -> type[AttentionCore]:
    """The core of model.attention_backend."""
    # Imported here, as both start torch's compiler, which other jobs can do without.
    if backend == "flex":
        from titan_recipes.trainer.model.flex_core import FlexCore

        return FlexCore
    if backend == "varlen":
        from titan_recipes.trainer.model.varlen_core import VarlenCore

        return VarlenCore
    return AttentionCore


class GroupedQueryAttention(nn.Module):
    """Causal attention in which N query heads share K key and value heads."""

    def __init__(self, sizes: Model, layer: int) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        query_width, kv_width = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
        self.wq = nn.Linear(sizes.dim, query_width, bias=sizes.attention_bias)
        self.wk = nn.Linear(sizes.dim, kv_width, bias=sizes.attention_bias)
        self.wv = nn.Linear(sizes.dim, kv_width, bias=sizes.attention_bias)
        self.wo = nn.Linear(query_width, sizes.dim, bias=sizes.attention_bias)
        self.q_norm = build_norm(sizes, sizes.head_dim) if sizes.qk_norm else None
        self.k_norm = build_norm(sizes, sizes.head_dim) if sizes.qk_norm else None
        self.sinks = nn.Parameter(torch.zeros(sizes.n_heads)) if sizes.attention_sinks else None
        self.core = build_core(sizes, layer)

    def forward(self, x_BSD: Tensor, rope_SH: Tensor, mask: Any = None) -> Tensor:
        q_BSNH = self.wq(x_BSD).unflatten(-1, (-1, self.head_dim))
        k_BSKH = self.wk(x_BSD).unflatten(-1, (-1, self.head_dim))
        v_BSKH = self.wv(x_BSD).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q_BSNH, k_BSKH = self.q_norm(q_BSNH), self.k_norm(k_BSKH)
        q_BNSH = apply_rope(q_BSNH, rope_SH).transpose(1, 2)
        k_BKSH = apply_rope(k_BSKH, rope_SH).transpose(1, 2)
        v_BKSH = v_BSKH.transpose(1, 2)
        out_BNSH = self.core(q_BNSH, k_BKSH, v_BKSH, mask, self.sinks)
        return self.wo(out_BNSH.transpose(1, 2).flatten(-2))


class MultiHeadLatentAttention(nn.Module):
    """Attention whose keys and values are made from one narrow latent of each token.

    A head is [unrotated, rotated]; the rotated part of its key is shared by all heads. Training
    has no cache to save, so heads are written out and go through the ordinary core.
    """

    def __init__(self, sizes: Model, mla: LatentAttention, layer: int) -> None:
        super().__init__()
        self.head_dim, self.kv_lora_rank = sizes.head_dim, mla.kv_lora_rank
        self.rope_head_dim, self.plain_head_dim = (
            mla.rope_head_dim,
            sizes.head_dim - mla.rope_head_dim,
        )
        self.v_head_dim, self.q_lora_rank = mla.v_head_dim, mla.q_lora_rank
        query_width = sizes.n_heads * sizes.head_dim
        if mla.q_lora_rank:
            self.wq_a = nn.Linear(sizes.dim, mla.q_lora_rank, bias=False)
            self.q_a_norm = build_norm(sizes, mla.q_lora_rank)
            self.wq_b = nn.Linear(mla.q_lora_rank, query_width, bias=False)
        else:
            self.wq = nn.Linear(sizes.dim, query_width, bias=False)
        self.wkv_a = nn.Linear(sizes.dim, mla.kv_lora_rank + mla.rope_head_dim, bias=False)
        self.kv_norm = build_norm(sizes, mla.kv_lora_rank)
        kv_width = sizes.n_heads * (self.plain_head_dim + mla.v_head_dim)
        self.wkv_b = nn.Linear(mla.kv_lora_rank, kv_width, bias=False)
        self.wo = nn.Linear(sizes.n_heads * mla.v_head_dim, sizes.dim, bias=False)
        self.core = build_core(sizes, layer)

    def forward(self, x_BSD: Tensor, rope_SR: Tensor, mask: Any = None) -> Tensor:
        plain, rotated = self.plain_head_dim, self.rope_head_dim
        query = self.wq_b(self.q_a_norm(self.wq_a(x_BSD))) if self.q_lora_rank else self.wq(x_BSD)
        q_BSNH = query.unflatten(-1, (-1, self.head_dim))
        q_plain, q_rotated = q_BSNH.split([plain, rotated], dim=-1)
        q_BSNH = torch.cat([q_plain, apply_rope(q_rotated, rope_SR)], dim=-1)

        latent_BSL, k_rotated_BSR = self.wkv_a(x_BSD).split([self.kv_lora_rank, rotated], dim=-1)
        kv = self.wkv_b(self.kv_norm(latent_BSL)).unflatten(-1, (-1, plain + self.v_head_dim))
        k_plain, v_BSNV = kv.split([plain, self.v_head_dim], dim=-1)
        k_rotated_BS1R = apply_rope(k_rotated_BSR.unsqueeze(2), rope_SR)
        k_rotated_BSNR = k_rotated_BS1R.expand(-1, -1, k_plain.shape[2], -1)
        k_BSNH = torch.cat([k_plain, k_rotated_BSNR], dim=-1)

        q_BNSH, k_BNSH, v_BNSV = (x.transpose(1, 2) for x in (q_BSNH, k_BSNH, v_BSNV))
        out_BNSV = self.core(q_BNSH, k_BNSH, v_BNSV, mask, None)
        return self.wo(out_BNSV.transpose(1, 2).flatten(-2))


def build_attention(sizes: Model, layer: int) -> GroupedQueryAttention | MultiHeadLatentAttention:
    """The attention of a layer."""
    if sizes.mla is not None:
        return MultiHeadLatentAttention(sizes, sizes.mla, layer)
    return GroupedQueryAttention(sizes, layer)
