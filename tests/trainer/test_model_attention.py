"""Attention, rotations included, against loops over single tokens."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from titan_recipes.config.schema import Model, RopeScaling
from titan_recipes.config.schema.model import LatentAttention
from titan_recipes.trainer.model.attention import MultiHeadLatentAttention, build_core
from titan_recipes.trainer.model.attention_core import AttentionCore
from titan_recipes.trainer.model.rope import (
    Rope,
    rope_table,
    rotated_temperature,
    score_temperature,
    stretch,
)

DOCUMENTS = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1, 2], [3, 3, 4, 4, 4, 4, 4, 4, 4, 4]])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def naive_core(
    q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, window: int,
    documents: Tensor | None, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """One query at a time: exponentials of the keys it sees, over their sum."""
    batch, heads, seq_len, _ = q.shape
    out = []
    for b, n, s in itertools.product(range(batch), range(heads), range(seq_len)):
        seen = [t for t in range(s + 1) if not window or t > s - window]
        if documents is not None:
            seen = [t for t in seen if documents[b, t] == documents[b, s]]
        shared = n // (heads // k.shape[1])
        scores = k[b, shared, seen] @ q[b, n, s] * scale
        weights = (cap * torch.tanh(scores / cap) if cap else scores).exp()
        total = weights.sum() if sinks is None else weights.sum() + sinks[n].exp()
        out.append(weights @ v[b, shared, seen] / total)
    return torch.stack(out).view(batch, heads, seq_len, -1)


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("window", [0, 3, 64])
@pytest.mark.parametrize("cap", [0.0, 0.8])
def test_core_equals_a_loop_over_tokens_with_its_gradients(
    cap: float, window: int, documents: bool, sinks: bool
) -> None:
    q, k, v = drawn(2, 4, 10, 6), drawn(2, 2, 10, 6, seed=1), drawn(2, 2, 10, 5, seed=2)
    inputs = [q, k, v] + ([drawn(4, seed=3)] if sinks else [])
    core = AttentionCore(scale=0.7, soft_cap=cap, window=window, has_sinks=sinks)
    numbers, sink = DOCUMENTS if documents else None, inputs[3] if sinks else None
    out = core(q, k, v, core.mask(10, numbers, q.device), sink)
    expected = naive_core(q, k, v, 0.7, cap, window, numbers, sink)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    upstream = drawn(*out.shape, seed=4).detach()
    got = torch.autograd.grad(out, inputs, upstream)
    torch.testing.assert_close(
        got, torch.autograd.grad(expected, inputs, upstream), rtol=1e-4, atol=1e-5
    )


GEMMA3 = Model(
    family="gemma3", dim=32, n_layers=6, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48,
    vocab_size=64, rope_theta=1e6, rope_theta_local=1e4, sliding_window=4, global_every=3,
    attention_scale=0.25, attention_soft_cap=50.0,
    rope_scaling=RopeScaling(kind="linear", factor=8.0),
)  # fmt: skip


def test_local_layers_have_a_window_and_a_table_of_their_own() -> None:
    rope = Rope(GEMMA3, 16)
    rope.init_buffers()
    cores = [build_core(GEMMA3, layer) for layer in range(6)]
    assert [core.window for core in cores] == [4, 4, 0, 4, 4, 0]
    assert {(core.scale, core.soft_cap) for core in cores} == {(0.25, 50.0)}
    for layer in range(6):
        # Pair 1 of 4, position 5: only global layers are stretched.
        angle = 5 * 1e6 ** (-1 / 4) / 8 if layer % 3 == 2 else 5 * 1e4 ** (-1 / 4)
        assert rope(layer)[5, 1].item() == pytest.approx(math.cos(angle), rel=1e-6)
        assert rope(layer)[5, 5].item() == pytest.approx(math.sin(angle), rel=1e-6)


def test_rope_tables_are_float32_whatever_the_model_is_cast_to() -> None:
    with torch.device("meta"):
        rope = Rope(GEMMA3, 16).to(torch.bfloat16)
    rope.to_empty(device="cpu").init_buffers()
    again = Rope(GEMMA3, 16)
    again.init_buffers()
    assert rope.table_SH.dtype == rope.local_SH.dtype == torch.float32
    assert torch.equal(rope.table_SH, again.table_SH)
    assert torch.equal(rope.local_SH, again.local_SH)
    assert rope.state_dict() == {}


# --- yarn -----------------------------------------------------------------------------------------

GPT_OSS = RopeScaling(kind="yarn", factor=32.0, original_max_seq_len=4096, truncate=False)
DEEPSEEK = RopeScaling(
    kind="yarn", factor=40.0, original_max_seq_len=4096, mscale=1.0, mscale_all_dim=1.0
)


def yarn_pair(pair: int, width: int, theta: float, scaling: RopeScaling) -> float:
    """The stretched frequency of a pair, solved from where pairs turn beta_fast and beta_slow
    times in the trained length: L theta ** (-2 d / H) / (2 pi) = beta."""
    length = scaling.original_max_seq_len

    def border(beta: float) -> float:
        return width / 2 * math.log(length / (2 * math.pi * beta), theta)

    fast, slow = border(scaling.beta_fast), border(scaling.beta_slow)
    if scaling.truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    stretched = min(max((pair - fast) / (slow - fast), 0.0), 1.0)
    frequency = theta ** (-2 * pair / width)
    return (1 - stretched) * frequency + stretched * frequency / scaling.factor


@pytest.mark.parametrize(
    ("scaling", "theta", "first_moved", "all_stretched"),
    # The borders by hand: 32 ln(4096 / 2 pi / beta) / ln theta, gpt-oss 8.09 and 17.40,
    # DeepSeek 10.47 and 22.51, rounded outwards to 10 and 23.
    [(GPT_OSS, 150000.0, 9, 18), (DEEPSEEK, 10000.0, 11, 23)],
    ids=["gpt_oss", "deepseek_v3"],
)
def test_yarn_stretches_between_its_borders(
    scaling: RopeScaling, theta: float, first_moved: int, all_stretched: int
) -> None:
    frequencies = theta ** (-torch.arange(0, 64, 2, dtype=torch.float32) / 64)
    got = stretch(frequencies, scaling, theta)
    expected = [yarn_pair(pair, 64, theta, scaling) for pair in range(32)]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-6, atol=0)
    ratio = (frequencies / got).tolist()
    assert all(ratio[pair] == 1 for pair in range(first_moved))
    assert 1 < ratio[first_moved] < ratio[all_stretched - 1] < scaling.factor
    assert ratio[all_stretched:] == pytest.approx([scaling.factor] * (32 - all_stretched))


def test_yarn_temperature_is_on_the_rotated_part_or_on_whole_heads() -> None:
    # 0.1 ln 32 + 1, on queries and keys alike.
    assert rotated_temperature(GPT_OSS) == pytest.approx(1.3465735903)
    assert score_temperature(GPT_OSS) == 1.0
    table = rope_table(64, 4, 150000.0, GPT_OSS, torch.device("cpu"))
    assert table[0, :32].tolist() == pytest.approx([1.3465735903] * 32)
    # (0.1 ln 40 + 1) ** 2, on the product.
    assert rotated_temperature(DEEPSEEK) == 1.0
    assert score_temperature(DEEPSEEK) == pytest.approx(1.8738542071)
    assert score_temperature(None) == score_temperature(RopeScaling(kind="linear")) == 1.0


# --- latent attention -----------------------------------------------------------------------------

LATENT = Model(
    family="deepseek_v3", dim=32, n_layers=1, n_heads=3, n_kv_heads=3, head_dim=10, ffn_dim=48,
    vocab_size=64, rope_theta=10000.0, rope_scaling=DEEPSEEK,
    mla=LatentAttention(kv_lora_rank=12, q_lora_rank=14, rope_head_dim=4, v_head_dim=7),
)  # fmt: skip


@pytest.mark.parametrize("q_lora_rank", [0, 14])
def test_latent_attention_equals_its_formula_token_by_token(q_lora_rank: int) -> None:
    """arXiv:2405.04434, section 2.1: equations 37 to 47, a head and a token at a time."""
    from dataclasses import replace

    assert LATENT.mla is not None
    mla = replace(LATENT.mla, q_lora_rank=q_lora_rank)
    sizes = replace(LATENT, mla=mla)
    module = MultiHeadLatentAttention(sizes, mla, 0)
    w = {name: drawn(*p.shape, seed=i) for i, (name, p) in enumerate(module.named_parameters())}
    module.load_state_dict(w)
    rope = Rope(sizes, 8)
    rope.init_buffers()
    x = drawn(1, 6, 32, seed=50).detach()

    def norm(latent: Tensor, weight: Tensor) -> Tensor:
        return latent / (latent.pow(2).mean() + sizes.norm_eps).sqrt() * weight

    def turned(rotated: Tensor, position: int) -> Tensor:
        pairs = torch.complex(rotated[:2], rotated[2:])
        angle = torch.tensor([position * yarn_pair(d, 4, 10000.0, DEEPSEEK) for d in range(2)])
        pairs = pairs * torch.polar(torch.ones(2), angle)
        return torch.cat([pairs.real, pairs.imag])

    def projected(s: int, name: str) -> Tensor:
        return w[f"{name}.weight"] @ x[0, s]

    scale = 10**-0.5 * (0.1 * math.log(40) + 1) ** 2
    heads = []
    for n in range(3):
        queries, keys, values = [], [], []
        for s in range(6):
            if q_lora_rank:
                latent = norm(projected(s, "wq_a"), w["q_a_norm.weight"])
                query = w["wq_b.weight"][10 * n : 10 * n + 10] @ latent
            else:
                query = projected(s, "wq")[10 * n : 10 * n + 10]
            queries.append(torch.cat([query[:6], turned(query[6:], s)]))
            compressed = projected(s, "wkv_a")
            kv = w["wkv_b.weight"] @ norm(compressed[:12], w["kv_norm.weight"])
            keys.append(torch.cat([kv[13 * n : 13 * n + 6], turned(compressed[12:], s)]))
            values.append(kv[13 * n + 6 : 13 * n + 13])
        rows = []
        for s in range(6):
            weights = torch.stack([queries[s] @ keys[t] * scale for t in range(s + 1)]).softmax(0)
            rows.append(sum(weights[t] * values[t] for t in range(s + 1)))
        heads.append(torch.stack(rows))
    expected = torch.cat(heads, dim=-1) @ w["wo.weight"].T
    torch.testing.assert_close(module(x, rope(0))[0], expected, rtol=1e-4, atol=1e-4)
