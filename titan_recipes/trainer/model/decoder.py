"""The decoder: one transformer for every family, its sizes and switches read from model.toml.

Pre-norm blocks of attention and feed-forward, as in Llama 3 (arXiv:2407.21783); what other families
add (norms after, latent attention, experts, sinks, soft caps) is a switch of `config.schema.Model`.
Parallelism is laid over it from outside: nothing here imports torch.distributed.

Shapes: B batch, S sequence, D model, H rotated part of a head, V vocabulary.
"""

import math
from typing import Any

from torch import Tensor, nn

from titan_recipes.config.flavor import is_moe_layer
from titan_recipes.config.schema import Model
from titan_recipes.trainer.model.attention import build_attention
from titan_recipes.trainer.model.feed_forward import FeedForward
from titan_recipes.trainer.model.head import Head
from titan_recipes.trainer.model.moe import Moe
from titan_recipes.trainer.model.norm import build_norm
from titan_recipes.trainer.model.rope import Rope


class Block(nn.Module):
    """One transformer layer: attention, then feed-forward or experts, each normed and added."""

    def __init__(self, sizes: Model, layer: int) -> None:
        super().__init__()
        self.attention = build_attention(sizes, layer)
        if is_moe_layer(sizes, layer):
            assert sizes.moe is not None
            self.moe = Moe(sizes, sizes.moe)
        else:
            self.feed_forward = FeedForward(sizes, sizes.ffn_dim)
        self.attention_norm = build_norm(sizes, sizes.dim)
        self.ffn_norm = build_norm(sizes, sizes.dim)
        self.has_moe, self.post_norms = is_moe_layer(sizes, layer), sizes.post_norms
        if sizes.post_norms:
            self.post_attention_norm = build_norm(sizes, sizes.dim)
            self.post_ffn_norm = build_norm(sizes, sizes.dim)

    def forward(self, x_BSD: Tensor, rope_SH: Tensor, mask: Any = None) -> Tensor:
        """rope_SH: this layer's table, of at least S rows. mask: of its attention's core."""
        added_BSD = self.attention(self.attention_norm(x_BSD), rope_SH, mask)
        h_BSD = x_BSD + (self.post_attention_norm(added_BSD) if self.post_norms else added_BSD)
        feed_forward = self.moe if self.has_moe else self.feed_forward
        added_BSD = feed_forward(self.ffn_norm(h_BSD))
        return h_BSD + (self.post_ffn_norm(added_BSD) if self.post_norms else added_BSD)


class Decoder(nn.Module):
    """Token ids to logits.

    A pipeline stage sets embedding, norm and output to None and drops layers: the dict keeps the
    names of those that stay. Without an embedding it takes hidden states, without an output it
    returns them.
    """

    tok_embeddings: nn.Embedding | None
    norm: nn.Module | None
    output: Head | None

    def __init__(self, sizes: Model, seq_len: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.seq_len = seq_len
        # Tensor parallelism sets it: hidden states between blocks are one of so many parts.
        self.sequence_parts = 1
        self.tok_embeddings = nn.Embedding(sizes.vocab_size, sizes.dim)
        self.layers = nn.ModuleDict({str(i): Block(sizes, i) for i in range(sizes.n_layers)})
        self.norm = build_norm(sizes, sizes.dim)
        self.output = Head(sizes)
        self.rope = Rope(sizes, seq_len)
        self.tie()

    @property
    def is_tied(self) -> bool:
        """Whether output and embedding, both here, are one parameter."""
        has_both = self.output is not None and self.tok_embeddings is not None
        return self.sizes.tie_embeddings and has_both

    def tie(self) -> None:
        """Make output and embedding one parameter, if they are; `to_empty` takes them apart."""
        if self.is_tied:
            assert self.output is not None
            assert self.tok_embeddings is not None
            (self.output.weight,) = self.tok_embeddings.parameters()

    def init_buffers(self) -> None:
        """Fill every buffer on its own device; the weights are `model.init`'s."""
        for module in self.modules():
            if isinstance(module, Rope | Moe):
                module.init_buffers()

    def masks(self, x: Tensor, documents_BS: Tensor | None) -> list[Any]:
        """What each layer's attention sees, of `AttentionCore.mask`: one for all that are alike."""
        seq_len = x.shape[1] * (1 if self.tok_embeddings is not None else self.sequence_parts)
        layers: list[Any] = list(self.layers.values())
        cores = [layer.attention.core for layer in layers]
        made = {core.window: core for core in cores}
        masks = {w: core.mask(seq_len, documents_BS, x.device) for w, core in made.items()}
        return [masks[core.window] for core in cores]

    def forward(
        self, x: Tensor, documents_BS: Tensor | None = None, labels_BS: Tensor | None = None
    ) -> Tensor:
        """logits_BSV, with labels their loss, or the hidden states h_BSD of a stage not the last.

        x: token ids [B, S], or h_BSD on a stage that is not the first. documents_BS: document
        number of each token, which attends only inside its own; None = one document a row.
        """
        h_BSD = x
        if self.tok_embeddings is not None:
            h_BSD = self.tok_embeddings(x)
            if self.sizes.scale_embeddings:
                h_BSD = h_BSD * math.sqrt(self.sizes.dim)
        masks = self.masks(x, documents_BS)
        for (name, layer), mask in zip(self.layers.items(), masks, strict=True):
            h_BSD = layer(h_BSD, self.rope(int(name)), mask)
        if self.norm is not None:
            h_BSD = self.norm(h_BSD)
        return h_BSD if self.output is None else self.output(h_BSD, labels_BS)
