"""The decoder against its formulas, written out again the slow way."""

import math
from dataclasses import replace

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from tests.trainer.hf_models import SIZES as FAMILIES
from titan_recipes.bundle.bundle import Bundle
from titan_recipes.config.data_root import data_root
from titan_recipes.config.flavor import num_params
from titan_recipes.config.schema import Model, RopeScaling
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.init import init_weights, name_seed
from titan_recipes.trainer.model.norm import build_norm
from titan_recipes.trainer.model.rope import rope_table, stretch

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


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_each_family_are_those_the_arithmetic_counts(family: str) -> None:
    with torch.device("meta"):
        model = Decoder(FAMILIES[family], 8)
    assert sum(p.numel() for p in model.parameters()) == num_params(FAMILIES[family])


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
    model = made(replace(SIZES, tie_embeddings=tied))
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
    scaled = 2 * math.pi / stretch(2 * math.pi / wavelengths, scaling, 500000.0)
    assert scaled[0] == pytest.approx(1000.0, rel=1e-5)  # below 8192 / 4
    assert scaled[1] == pytest.approx(2048.0, rel=1e-5)  # the lower edge
    assert scaled[2] == pytest.approx(8 * 8192.0, rel=1e-5)  # the upper edge
    assert scaled[3] == pytest.approx(8 * 100000.0, rel=1e-5)
    middle = stretch(torch.tensor([2 * math.pi / 4096.0]), scaling, 500000.0)
    blend = (8192 / 4096 - 1) / (4 - 1)
    assert middle.item() == pytest.approx(2 * math.pi / 4096 * (blend + (1 - blend) / 8), rel=1e-5)


def test_rope_table_is_cos_and_sin_of_each_position() -> None:
    table = rope_table(SIZES.head_dim, 5, SIZES.rope_theta, None, torch.device("cpu"))
    assert table.shape == (5, SIZES.head_dim)
    assert table[3, 1].item() == pytest.approx(math.cos(3 * 10000.0 ** (-2 / 8)), rel=1e-6)
    assert table[3, 5].item() == pytest.approx(math.sin(3 * 10000.0 ** (-2 / 8)), rel=1e-6)


def test_init_has_the_stated_spread_and_depends_on_seed_and_name_only() -> None:
    sizes = replace(SIZES, dim=256, ffn_dim=512, vocab_size=2048, n_layers=3)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_init_fills_every_parameter_of_each_family(family: str) -> None:
    sizes = FAMILIES[family]
    with torch.device("meta"):
        model = Decoder(sizes, 8)
    model.to_empty(device="cpu")
    model.tie()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    init_weights(model, seed=0)
    for name, parameter in model.named_parameters():
        leaf = name.split(".")[-1]
        if name.split(".")[-2].endswith("norm"):
            assert (parameter == (0 if sizes.norm_unit_offset else 1)).all(), name
        elif leaf in ("bias", "b1", "b2", "b3", "sinks"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.isfinite().all(), name
            std = 1.0 if "tok_emb" in name and not sizes.tie_embeddings else 0.02
            if name == "output.weight" or ("tok_emb" in name and sizes.tie_embeddings):
                std = sizes.dim**-0.5
            elif ".wo." in name or leaf == "w2" or ".w2." in name:
                std /= math.sqrt(2 * (int(name.split(".")[1]) + 1))
            assert parameter.std().item() == pytest.approx(std, rel=0.12), name


# --- norms ----------------------------------------------------------------------------------------


def test_norms_equal_their_formulas() -> None:
    x, weight = torch.randn(3, 8), torch.randn(8)
    root = (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()
    expected = {
        ("rmsnorm", False): x / root * weight,
        ("rmsnorm", True): x / root * (1 + weight),
        ("layernorm", False): centred / spread * weight,
        ("np_layernorm", False): centred / spread,
    }
    for (kind, offset), values in expected.items():
        norm = build_norm(replace(SIZES, norm=kind, norm_unit_offset=offset, norm_eps=0.1), 8)
        assert [name for name, _ in norm.named_parameters()] == ["weight"] * ("np" not in kind)
        norm.load_state_dict({"weight": weight} if "np" not in kind else {})
        with torch.no_grad():
            torch.testing.assert_close(norm(x), values)


def test_offset_norm_keeps_small_weights_in_bf16() -> None:
    norm = build_norm(replace(SIZES, norm_unit_offset=True), 8).to(torch.bfloat16)
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        norm.weight.fill_(0.003)  # 1.003 is no bf16 number: 1 + weight would be 1
        expected = torch.nn.functional.rms_norm(x.float(), (8,), eps=1e-5) * (
            1 + norm.weight.float()
        )
        assert torch.equal(norm(x), expected.bfloat16())


# --- blocks and stages ----------------------------------------------------------------------------


def test_norms_after_and_the_scales_of_gemma_are_where_its_definition_has_them() -> None:
    sizes = replace(SIZES, post_norms=True, scale_embeddings=True, output_soft_cap=2.0, n_layers=1)
    model, tokens = made(sizes), torch.arange(12)[None]
    block = model.layers["0"]
    with torch.no_grad():
        for name in ("post_attention_norm", "post_ffn_norm"):
            getattr(block, name).weight.copy_(torch.randn(32))
        table = model.rope(0)
        h = model.tok_embeddings(tokens) * math.sqrt(32)
        h = h + block.post_attention_norm(block.attention(block.attention_norm(h), table))
        h = h + block.post_ffn_norm(block.feed_forward(block.ffn_norm(h)))
        logits = model.norm(h) @ model.output.weight.T
        expected = 2.0 * torch.tanh(logits / 2.0)
        torch.testing.assert_close(model(tokens), expected)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    model, tokens = made(), torch.arange(12)[None]
    documents = torch.tensor([[0] * 5 + [1] * 7])
    with torch.no_grad():
        together = model(tokens, documents)
        torch.testing.assert_close(together[:, :5], model(tokens[:, :5]))
        # Positions are not reset: rotations are relative.
        torch.testing.assert_close(together[:, 5:], model(tokens[:, 5:]), rtol=1e-4, atol=1e-5)
        assert (together - model(tokens))[:, 5:].abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gemma3", "deepseek_v3"])
def test_stages_in_a_row_equal_the_whole_model(family: str) -> None:
    sizes = FAMILIES[family]
    first, last, whole = made(sizes), made(sizes), made(sizes)
    first.norm = first.output = None
    del first.layers["2"], first.layers["3"]
    last.tok_embeddings = None
    del last.layers["0"], last.layers["1"]
    tokens = torch.arange(12)[None]
    documents = torch.tensor([[0] * 5 + [1] * 7])
    with torch.no_grad():
        assert torch.equal(last(first(tokens, documents), documents), whole(tokens, documents))


# Dynamo does both itself, and hides the first from its log only.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("family", ["gemma3", "deepseek_v3", "gpt_oss"])
def test_compiled_and_checkpointed_blocks_equal_plain_ones(family: str) -> None:
    """In one graph each: fullgraph compile refuses a block that Python has to help with."""
    sizes = FAMILIES[family]
    if sizes.moe is not None:
        sizes = replace(sizes, moe=replace(sizes.moe, aux_loss_weight=0.01))
    tokens = torch.arange(24).view(2, 12)
    documents = torch.tensor([[0] * 5 + [1] * 7, [2] * 12])
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = made(sizes)
        for name, buffer in model.named_buffers():
            if name.endswith("balance_factor"):
                buffer.fill_(1 / 24)
        if compiled:
            for name, block in model.layers.items():
                model.layers[name] = checkpoint_wrapper(block, preserve_rng_state=False)
                model.layers[name].compile(backend="aot_eager", fullgraph=True)
        logits = model(tokens, documents)
        logits.logsumexp(-1).sum().backward()
        gradients = [p.grad for p in model.parameters()]
        counts = [b for name, b in model.named_buffers() if "tokens_per_expert" in name]
        assert all(count.sum() == 24 * 3 for count in counts)
        results.append((logits.detach(), gradients, counts))
    # A graph rounds twice where eager's rotary embedding multiplies and adds in one.
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
