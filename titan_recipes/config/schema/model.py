"""What is trained: every architecture number and switch of a decoder, as model.toml writes them.

One decoder serves all families; a family is these values and a Hugging Face key map.
"""

from typing import Literal

from titan_recipes.config.schema.fields import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    section,
)

Family = Literal[
    "llama2",
    "llama3",
    "gemma",
    "gemma2",
    "gemma3",
    "qwen3",
    "mixtral",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
]


@section
class RopeScaling:
    """[model.rope_scaling] (ours): stretching of rotary positions beyond the trained length.

    "llama3" stretches long wavelengths only (arXiv:2407.21783, section 3.2), "linear" all alike
    (arXiv:2306.15595), "yarn" by how often a wavelength fits into the trained length, with a
    temperature on attention (arXiv:2309.00071).
    """

    kind: Literal["llama3", "linear", "yarn"] = "llama3"
    """How frequencies are stretched."""
    factor: PositiveFloat = 8.0
    """How much long wavelengths are stretched."""
    original_max_seq_len: Positive = 8192
    """Sequence length the frequencies were first trained for, in tokens."""
    low_freq_factor: PositiveFloat = 1.0
    """llama3: wavelengths above original_max_seq_len / low_freq_factor are stretched in full."""
    high_freq_factor: PositiveFloat = 4.0
    """llama3: wavelengths below original_max_seq_len / high_freq_factor stay as they are."""
    beta_fast: PositiveFloat = 32.0
    """yarn: frequencies that turn more often than this in the trained length stay as they are."""
    beta_slow: PositiveFloat = 1.0
    """yarn: frequencies that turn less often than this in the trained length are stretched."""
    mscale: NonNegativeFloat = 0.0
    """yarn: weight of log(factor) in the attention temperature; 0 = the paper's 1."""
    mscale_all_dim: NonNegativeFloat = 0.0
    """yarn (DeepSeek): the same weight for the part of a head that is not rotated; 0 = none."""
    truncate: bool = True
    """yarn: round the borders of the ramp to whole dimensions."""


@section
class LatentAttention:
    """[model.mla] (ours): multi-head latent attention (DeepSeek-V2, arXiv:2405.04434).

    `head_dim` is then the width of a query and key head, rotated part included.
    """

    kv_lora_rank: Positive
    """Width of the latent that keys and values are made from."""
    q_lora_rank: NonNegative = 0
    """Width of the latent that queries are made from; 0 = from the hidden state directly."""
    rope_head_dim: Positive
    """Part of head_dim that carries the position; its key is shared by all heads."""
    v_head_dim: Positive
    """Width of a value head."""


@section
class MoE:
    """[model.moe] (ours): mixture-of-experts feed-forwards instead of dense ones."""

    num_experts: Positive
    """Routed experts in a layer."""
    experts_per_token: Positive
    """Routed experts that a token visits (top-k)."""
    ffn_dim: Positive
    """Hidden width of one expert."""
    num_shared_experts: NonNegative = 0
    """Experts that every token visits; one feed-forward of num_shared_experts * ffn_dim."""
    num_dense_layers: NonNegative = 0
    """First layers that keep a dense feed-forward."""
    score_func: Literal["softmax", "sigmoid"] = "softmax"
    """How router logits become scores."""
    normalize_top_k: bool = True
    """Scale the chosen scores to sum to 1."""
    route_scale: PositiveFloat = 1.0
    """Factor on the chosen scores."""
    num_groups: Positive = 1
    """Groups that the experts form (DeepSeek-V3, arXiv:2412.19437)."""
    num_limited_groups: Positive = 1
    """Groups, ranked by the sum of their two best scores, that a token chooses experts from."""
    router_bias: bool = False
    """The router is a linear with bias."""
    expert_bias: bool = False
    """The experts' matrices have biases."""
    load_balance_coeff: NonNegativeFloat = 0.0
    """Step of the selection bias that balances load without a loss (arXiv:2408.15664); 0 = the
    bias stays as it is."""
    aux_loss_weight: NonNegativeFloat = 0.0
    """Weight of the balance loss, taken over each sequence (arXiv:2412.19437, eq. 17); 0 = none."""


@section
class Model:
    """[model]: the flavor. Every architecture number, and what is done to the model as a whole."""

    family: Family
    """ours: which Hugging Face architecture these numbers describe."""
    dim: Positive
    """ours: model width."""
    n_layers: Positive
    """ours: number of transformer blocks."""
    n_heads: Positive
    """ours: number of query heads."""
    n_kv_heads: Positive
    """ours: number of key and value heads; n_heads is a multiple of it."""
    head_dim: Positive
    """ours: width of one head."""
    ffn_dim: NonNegative
    """ours: hidden width of the dense gated feed-forward; 0 where every layer has experts."""
    vocab_size: Positive
    """ours: rows of the embedding; at least the tokenizer's size."""
    norm: Literal["rmsnorm", "layernorm", "np_layernorm"] = "rmsnorm"
    """ours: the norm of every layer; np_layernorm has no weight (OLMo, arXiv:2402.00838)."""
    norm_eps: PositiveFloat = 1e-5
    """ours: epsilon of the norms."""
    norm_unit_offset: bool = False
    """ours: norms multiply by 1 + weight, and weights begin at 0 (Gemma)."""
    post_norms: bool = False
    """ours: attention and feed-forward are normed after, too, before they are added (Gemma 2)."""
    qk_norm: bool = False
    """ours: each query and key head is normed before it is rotated (Qwen 3, Gemma 3)."""
    attention_bias: bool = False
    """ours: wq, wk, wv and wo have biases."""
    activation: Literal["silu", "gelu_tanh", "clamped_swiglu"] = "silu"
    """ours: the gate's activation; "clamped_swiglu" is gpt-oss's: the gate capped at 7, times
    sigmoid of 1.702 times itself, times the other branch, clamped to 7 either way, plus 1."""
    scale_embeddings: bool = False
    """ours: embeddings are multiplied by sqrt(dim) (Gemma)."""
    attention_scale: NonNegativeFloat = 0.0
    """ours: factor on query-key products; 0 = head_dim ** -0.5."""
    attention_soft_cap: NonNegativeFloat = 0.0
    """ours: attention scores x become cap * tanh(x / cap) (Gemma 2); 0 = none."""
    output_soft_cap: NonNegativeFloat = 0.0
    """ours: the same for the logits; 0 = none."""
    attention_sinks: bool = False
    """ours: each head has a learned logit that takes part in the softmax (gpt-oss)."""
    attention_backend: Literal["sdpa", "flex", "varlen"] = "sdpa"
    """ours: what computes attention where more than causality is asked: "sdpa" with S x S masks,
    "flex" FlexAttention, "varlen" FlashAttention for packed documents; see docs/attention.md."""
    sliding_window: NonNegative = 0
    """ours: a token sees itself and the sliding_window - 1 before it; 0 = all before it."""
    global_every: NonNegative = 0
    """ours: with a sliding window, each n-th layer sees everything; 0 = none does."""
    rope_theta: PositiveFloat = 500000.0
    """ours: base of the rotary embedding's frequencies."""
    rope_theta_local: NonNegativeFloat = 0.0
    """ours: base in sliding-window layers, where nothing is stretched (Gemma 3); 0 = rope_theta."""
    rope_scaling: RopeScaling | None = None
    """ours: a table [model.rope_scaling] stretches RoPE; without the table nothing is stretched."""
    mla: LatentAttention | None = None
    """ours: a table [model.mla] makes attention latent; without it, it is grouped-query."""
    moe: MoE | None = None
    """ours: a table [model.moe] makes feed-forwards mixtures; without it all are dense."""
    tie_embeddings: bool = False
    """ours: the output projection is the embedding's matrix."""
    hf_assets_path: str = ""
    """Directory with Hugging Face assets, searched for a tokenizer; overrides assets.tokenizer."""
    tokenizer_path: str = ""
    """Tokenizer file or directory; overrides assets.tokenizer."""
    converters: tuple[str, ...] = ()
    """Model converters, in order: "float8", "mx"; ours: "lora"."""
    print_after_conversion: bool = False
    """Print the model after the converters ran."""
