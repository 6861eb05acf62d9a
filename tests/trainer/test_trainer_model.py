"""The decoder against its formulas, written out again the slow way."""

import math

import pytest
import torch

from titan_recipes.bundle.bundle import Bundle
from titan_recipes.config.data_root import data_root
from titan_recipes.config.plan import num_params
from titan_recipes.config.schema import Model, RopeScaling
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.init import init_weights, name_seed
from titan_recipes.trainer.model.rope import rope_table, scale_frequencies

RECIPES = sorted(path.name for path in (data_root() / "recipes").iterdir())
assert RECIPES, "no packaged recipes"

SIZES = Model(
    family="llama3", dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48,
    vocab_size=64, rope_theta=10000.0,
)  # fmt: skip


def made(sizes: Model = SIZES, seq_len: int = 16) -> Decoder:
    model = Decoder(sizes, seq_len)
    init_weights(model, seed=0)
    return model


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_of_the_model_are_those_the_plan_counts(name: str) -> None:
    job = Bundle(data_root() / "recipes" / name).resolve().job
    with torch.device("meta"):
        model = Decoder(job.model, 8)
    assert sum(p.numel() for p in model.parameters()) == num_params(job.model)


def reference_logits(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Llama 3's forward pass from its definition: complex rotations, an explicit causal softmax."""
    sizes, weights = model.sizes, dict(model.named_parameters())

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + sizes.norm_eps).sqrt() * weight

    def rotate(x: torch.Tensor, position: int) -> torch.Tensor:
        half = sizes.head_dim // 2
        pairs = torch.complex(x[:half], x[half:])
        angles = torch.tensor(
            [position * sizes.rope_theta ** (-2 * i / sizes.head_dim) for i in range(half)]
        )
        turned = pairs * torch.polar(torch.ones(half), angles)
        return torch.cat([turned.real, turned.imag])

    h = weights["tok_embeddings.weight"][tokens]
    for layer in range(sizes.n_layers):
        w = {k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith(f"layers.{layer}.")}
        x = norm(h, w["attention_norm.weight"])
        heads = []
        for head in range(sizes.n_heads):
            shared = head // (sizes.n_heads // sizes.n_kv_heads)
            rows = slice(head * sizes.head_dim, (head + 1) * sizes.head_dim)
            kv_rows = slice(shared * sizes.head_dim, (shared + 1) * sizes.head_dim)
            q = x @ w["attention.wq.weight"][rows].T
            k = x @ w["attention.wk.weight"][kv_rows].T
            v = x @ w["attention.wv.weight"][kv_rows].T
            q = torch.stack([rotate(q[s], s) for s in range(len(tokens))])
            k = torch.stack([rotate(k[s], s) for s in range(len(tokens))])
            scores = q @ k.T / math.sqrt(sizes.head_dim)
            scores += torch.full_like(scores, -torch.inf).triu(1)
            heads.append(scores.softmax(-1) @ v)
        h = h + torch.cat(heads, -1) @ w["attention.wo.weight"].T
        x = norm(h, w["ffn_norm.weight"])
        gate = torch.nn.functional.silu(x @ w["feed_forward.w1.weight"].T)
        h = h + (gate * (x @ w["feed_forward.w3.weight"].T)) @ w["feed_forward.w2.weight"].T
    return norm(h, weights["norm.weight"]) @ model.output.weight.T


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_the_definition(tied: bool) -> None:
    import dataclasses

    model = made(dataclasses.replace(SIZES, tie_embeddings=tied))
    tokens = torch.randint(0, 64, (12,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference_logits(model, tokens)
        torch.testing.assert_close(model(tokens[None])[0], expected, rtol=1e-5, atol=1e-5)


def test_logits_of_a_position_do_not_depend_on_later_tokens() -> None:
    model, tokens = made(), torch.arange(12)[None]
    changed = tokens.clone()
    changed[0, 8:] = 5
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0, :8], model(changed)[0, :8])


def test_rope_scaling_stretches_long_wavelengths_and_keeps_short_ones() -> None:
    scaling = RopeScaling(factor=8.0)
    wavelengths = torch.tensor([1000.0, 2048.0, 8192.0, 100000.0])
    scaled = 2 * math.pi / scale_frequencies(2 * math.pi / wavelengths, scaling)
    assert scaled[0] == pytest.approx(1000.0, rel=1e-5)  # below 8192 / 4
    assert scaled[1] == pytest.approx(2048.0, rel=1e-5)  # the lower edge
    assert scaled[2] == pytest.approx(8 * 8192.0, rel=1e-5)  # the upper edge
    assert scaled[3] == pytest.approx(8 * 100000.0, rel=1e-5)
    middle = scale_frequencies(torch.tensor([2 * math.pi / 4096.0]), scaling)
    blend = (8192 / 4096 - 1) / (4 - 1)
    assert middle.item() == pytest.approx(2 * math.pi / 4096 * (blend + (1 - blend) / 8), rel=1e-5)


def test_rope_table_is_cos_and_sin_of_each_position() -> None:
    table = rope_table(SIZES, 5, torch.device("cpu"))
    assert table.shape == (5, SIZES.head_dim)
    assert table[3, 1].item() == pytest.approx(math.cos(3 * 10000.0 ** (-2 / 8)), rel=1e-6)
    assert table[3, 5].item() == pytest.approx(math.sin(3 * 10000.0 ** (-2 / 8)), rel=1e-6)


def test_init_has_the_stated_spread_and_depends_on_seed_and_name_only() -> None:
    import dataclasses

    sizes = dataclasses.replace(SIZES, dim=256, ffn_dim=512, vocab_size=2048, n_layers=3)
    model = made(sizes)
    weights = dict(model.named_parameters())
    # The truncation at three std takes 1.3 % off the spread.
    expected = {
        "tok_embeddings.weight": 1.0,
        "layers.0.attention.wq.weight": 0.02 * 0.987,
        "layers.2.feed_forward.w2.weight": 0.02 / math.sqrt(6) * 0.987,
        "output.weight": 256**-0.5 * 0.987,
    }
    for name, std in expected.items():
        assert weights[name].std().item() == pytest.approx(std, rel=0.02), name
    assert all((weights[n] == 1).all() for n in weights if "norm" in n)
    assert not torch.equal(weights["layers.0.attention.wq.weight"],
                           weights["layers.1.attention.wq.weight"])  # fmt: skip
    again = dict(made(sizes).named_parameters())
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert name_seed(1, "a") != name_seed(0, "a") != name_seed(0, "b")
