"""The decoder: one transformer for every family, its sizes and switches read from model.toml.

Pre-norm blocks of grouped-query attention with rotary positions and a gated feed-forward, as in
Llama 3 (arXiv:2407.21783). Parallelism is laid over it from outside: nothing here imports
torch.distributed.

Shapes: B batch, S sequence, D model, N query heads, K key and value heads, H head, F feed-forward,
V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titan_recipes.config.schema import Model
from titan_recipes.trainer.model.rope import apply_rope, rope_table


class Attention(nn.Module):
    """Causal grouped-query attention; N query heads share K key and value heads."""

    def __init__(self, sizes: Model) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        self.enable_gqa = sizes.n_heads != sizes.n_kv_heads
        self.wq = nn.Linear(sizes.dim, sizes.n_heads * sizes.head_dim, bias=False)
        self.wk = nn.Linear(sizes.dim, sizes.n_kv_heads * sizes.head_dim, bias=False)
        self.wv = nn.Linear(sizes.dim, sizes.n_kv_heads * sizes.head_dim, bias=False)
        self.wo = nn.Linear(sizes.n_heads * sizes.head_dim, sizes.dim, bias=False)

    def forward(self, x_BSD: Tensor, rope_SH: Tensor) -> Tensor:
        # The head count is left to the view (-1): under tensor parallelism a rank holds N / tp.
        q_BSNH = self.wq(x_BSD).unflatten(-1, (-1, self.head_dim))
        k_BSKH = self.wk(x_BSD).unflatten(-1, (-1, self.head_dim))
        v_BSKH = self.wv(x_BSD).unflatten(-1, (-1, self.head_dim))
        q_BNSH = apply_rope(q_BSNH, rope_SH).transpose(1, 2)
        k_BKSH = apply_rope(k_BSKH, rope_SH).transpose(1, 2)
        out_BNSH = F.scaled_dot_product_attention(
            q_BNSH, k_BKSH, v_BSKH.transpose(1, 2), is_causal=True, enable_gqa=self.enable_gqa
        )
        return self.wo(out_BNSH.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x) (arXiv:2002.05202)."""

    def __init__(self, sizes: Model) -> None:
        super().__init__()
        self.w1 = nn.Linear(sizes.dim, sizes.ffn_dim, bias=False)
        self.w2 = nn.Linear(sizes.ffn_dim, sizes.dim, bias=False)
        self.w3 = nn.Linear(sizes.dim, sizes.ffn_dim, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x_BSD)) * self.w3(x_BSD))


class Block(nn.Module):
    """One transformer layer: attention, then feed-forward, each normed before and added after."""

    def __init__(self, sizes: Model) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.feed_forward = FeedForward(sizes)
        self.attention_norm = nn.RMSNorm(sizes.dim, eps=sizes.norm_eps)
        self.ffn_norm = nn.RMSNorm(sizes.dim, eps=sizes.norm_eps)

    def forward(self, x_BSD: Tensor, rope_SH: Tensor) -> Tensor:
        h_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rope_SH)
        return h_BSD + self.feed_forward(self.ffn_norm(h_BSD))


class Decoder(nn.Module):
    """Token ids to logits.

    `layers` is a dict so that a pipeline stage can drop layers and keep their names; embedding,
    norm and output may be None there.
    """

    rope_SH: Tensor

    def __init__(self, sizes: Model, seq_len: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.seq_len = seq_len
        self.tok_embeddings = nn.Embedding(sizes.vocab_size, sizes.dim)
        self.layers = nn.ModuleDict({str(i): Block(sizes) for i in range(sizes.n_layers)})
        self.norm = nn.RMSNorm(sizes.dim, eps=sizes.norm_eps)
        self.output = nn.Linear(sizes.dim, sizes.vocab_size, bias=False)
        self.tie()
        table_SH = torch.empty(seq_len, sizes.head_dim)
        self.register_buffer("rope_SH", table_SH, persistent=False)

    def tie(self) -> None:
        """Make output and embedding one parameter, where they are; `to_empty` takes them apart."""
        if self.sizes.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def init_buffers(self) -> None:
        """Fill the rotary table on the buffer's own device; the weights are `model.init`'s."""
        self.rope_SH.copy_(rope_table(self.sizes, self.seq_len, self.rope_SH.device))

    def forward(self, tokens_BS: Tensor) -> Tensor:
        h_BSD = self.tok_embeddings(tokens_BS)
        rope_SH = self.rope_SH[: tokens_BS.shape[1]]
        for layer in self.layers.values():
            h_BSD = layer(h_BSD, rope_SH)
        return self.output(self.norm(h_BSD))
