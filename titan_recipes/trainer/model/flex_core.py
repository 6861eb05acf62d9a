"""Attention by FlexAttention (arXiv:2412.05496): one fused kernel, made for what a layer asks.

A block mask says which tiles of 128 x 128 scores are needed at all, and which of them need the rule
inside; a soft cap is a change of scores, and sinks join through the log-sum-exp. Nothing is S x S.
Layers that ask for nothing but causality stay with SDPA. torch has no backward of it on the CPU.

Importing this starts torch's compiler, which other jobs can do without.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)

from titan_recipes.trainer.model.attention_core import AttentionCore, with_sinks

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(sequence, head, query, key) -> whether it sees it."""


@functools.cache
def compiled(function: Callable[..., Any]) -> Any:
    """Compiled once, for all layers, at its first use: as they are, torch's functions make tensors
    of S x S."""
    return torch.compile(function)


class FlexCore(AttentionCore):
    """AttentionCore whose masks are BlockMasks. Value heads may have a width of their own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.score_mod = capped(self.soft_cap) if self.soft_cap else None

    def mask(self, seq_len: int, documents_BS: Tensor | None, device: torch.device) -> Any:
        """A BlockMask; None = nothing but causality."""
        if self.is_plain(seq_len, documents_BS):
            return None
        if documents_BS is None:
            return positions_mask(seq_len, self.window, device)
        batch = documents_BS.shape[0]
        rule = inside_documents(documents_BS, positions_rule(self.window))
        return blocks(rule, batch, seq_len, device)

    def forward(
        self, q_BNSH: Tensor, k_BKSH: Tensor, v_BKSV: Tensor, mask: Any, sinks_N: Tensor | None
    ) -> Tensor:
        """out_BNSV. mask: of `self.mask`."""
        if mask is None:
            return super().forward(q_BNSH, k_BKSH, v_BKSV, None, None)
        # A compiled block compiles it, too; compiled code for the CPU has no log-sum-exp.
        as_it_is = torch.compiler.is_compiling() or not q_BNSH.is_cuda
        attend: Any = flex_attention if as_it_is else compiled(flex_attention)
        out_BNSV, extra = attend(
            q_BNSH,
            k_BKSH,
            v_BKSV,
            score_mod=self.score_mod,
            block_mask=mask,
            scale=self.scale,
            enable_gqa=q_BNSH.shape[1] != k_BKSH.shape[1],
            return_aux=AuxRequest(lse=sinks_N is not None),
        )
        return out_BNSV if sinks_N is None else with_sinks(out_BNSV, extra.lse, sinks_N)


@functools.lru_cache(maxsize=8)
def positions_mask(seq_len: int, window: int, device: torch.device) -> BlockMask:
    """Of positions alone: the same for every batch."""
    return blocks(positions_rule(window), None, seq_len, device)


def blocks(rule: Rule, batch: int | None, seq_len: int, device: torch.device) -> BlockMask:
    """The BlockMask of a rule that is the same for all heads; batch None: for all sequences."""
    create: Any = compiled(create_block_mask) if device.type == "cuda" else create_block_mask
    return create(rule, batch, None, seq_len, seq_len, device=device)


def causal(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A token sees itself and all before it."""
    return query >= key


@functools.cache
def positions_rule(window: int) -> Rule:
    """Causality and, unless 0, a window."""
    if not window:
        return causal

    def in_window(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < window)

    return in_window


def inside_documents(documents_BS: Tensor, rule: Rule) -> Rule:
    """A rule, inside of documents only."""

    def same_document(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(b, h, query, key) & (documents_BS[b, query] == documents_BS[b, key])

    return same_document


@functools.cache
def capped(cap: float) -> Callable[..., Tensor]:
    """The soft cap as a change of scores; the same function for all layers."""

    def cap_score(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return cap_score
