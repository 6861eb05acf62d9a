"""Experts against a loop over single tokens, and the balance loss against its formula."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from titan_recipes.config.schema import Model
from titan_recipes.config.schema.model import MoE
from titan_recipes.trainer.model.grouped import grouped_mm, looped_mm
from titan_recipes.trainer.model.moe import Moe, Rearrange
from titan_recipes.trainer.parallel.precision import compute_in

DIM, SHAPE = 16, (2, 5, 16)
KINDS: dict[str, tuple[str, MoE]] = {
    "mixtral": ("silu", MoE(num_experts=6, experts_per_token=2, ffn_dim=12)),
    "unnormalized": (
        "silu",
        MoE(num_experts=6, experts_per_token=3, ffn_dim=12, normalize_top_k=False),
    ),
    "deepseek_v3": (
        "silu",
        MoE(
            num_experts=8, experts_per_token=3, ffn_dim=12, score_func="sigmoid", route_scale=2.5,
            num_groups=4, num_limited_groups=2, num_shared_experts=2,
        ),
    ),
    "gpt_oss": (
        "clamped_swiglu",
        MoE(num_experts=6, experts_per_token=2, ffn_dim=12, router_bias=True, expert_bias=True),
    ),
}  # fmt: skip


def made(kind: str, **more: Any) -> Moe:
    """A layer whose every parameter and selection bias is random; gates reach past the clamp."""
    activation, moe = KINDS[kind]
    moe = replace(moe, **more)
    sizes = Model(
        family="mixtral", dim=DIM, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2, ffn_dim=0,
        vocab_size=2, activation=activation, moe=moe,
    )  # fmt: skip
    layer = Moe(sizes, moe)
    layer.init_buffers()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if layer.router.selection_bias is not None:
            bias = torch.randn(moe.num_experts, generator=generator)
            layer.router.selection_bias.copy_(bias)
    return layer


def hidden(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()


def chosen(scores: Tensor, moe: MoE, bias: Tensor | None) -> list[int]:
    """The experts of one token, by sorting lists."""
    ranked = (scores if bias is None else scores + bias).tolist()
    size = moe.num_experts // moe.num_groups
    groups = [range(i * size, (i + 1) * size) for i in range(moe.num_groups)]
    if moe.num_groups > 1:
        groups.sort(key=lambda group: -sum(sorted(ranked[e] for e in group)[-2:]))
        groups = groups[: moe.num_limited_groups]
    experts = [e for group in groups for e in group]
    return sorted(experts, key=lambda e: -ranked[e])[: moe.experts_per_token]


def naive(layer: Moe, x: Tensor) -> tuple[Tensor, list[list[int]], Tensor]:
    """(output, experts of each token, scores [T, E]), one token and one expert at a time."""
    router, experts, moe = layer.router, layer.experts, layer.router.moe
    out, visited, all_scores = [], [], []
    for token in x.flatten(0, 1):
        logits = router.gate.weight @ token
        if router.gate.bias is not None:
            logits = logits + router.gate.bias
        scores = logits.softmax(0) if moe.score_func == "softmax" else logits.sigmoid()
        mine = chosen(scores.detach(), moe, router.selection_bias)
        weights = torch.stack([scores[e] for e in mine])
        if moe.normalize_top_k:
            weights = weights / weights.sum()
        row = torch.zeros(DIM)
        for e, weight in zip(mine, weights * moe.route_scale, strict=True):
            gate, up = experts.w1[e] @ token, experts.w3[e] @ token
            if moe.expert_bias:
                assert experts.b1 is not None
                assert experts.b2 is not None
                assert experts.b3 is not None
                gate, up = gate + experts.b1[e], up + experts.b3[e]
                gate, up = gate.clamp(max=7), up.clamp(-7, 7)
                row = row + weight * experts.b2[e]
                product = gate * (1.702 * gate).sigmoid() * (up + 1)
            else:
                product = gate * gate.sigmoid() * up
            row = row + weight * (experts.w2[e] @ product)
        if layer.shared is not None:
            gate = layer.shared.w1.weight @ token
            product = gate * gate.sigmoid() * (layer.shared.w3.weight @ token)
            row = row + layer.shared.w2.weight @ product
        out.append(row)
        visited.append(mine)
        all_scores.append(scores)
    return torch.stack(out).view_as(x), visited, torch.stack(all_scores)


def close_gradients(layer: Moe, x: Tensor, got: Tensor, expected: Tensor) -> None:
    names, parameters = zip(*layer.named_parameters(), strict=True)
    got_grads = torch.autograd.grad(got, (x, *parameters))
    expected_grads = torch.autograd.grad(expected, (x, *parameters))
    for name, mine, naive_one in zip(("x", *names), got_grads, expected_grads, strict=True):
        where = f"gradient of {name}"
        torch.testing.assert_close(mine, naive_one, rtol=1e-4, atol=1e-3, msg=where)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_equal_a_loop_over_tokens_with_their_gradients(kind: str) -> None:
    layer, x = made(kind), hidden(*SHAPE)
    expected, visited, _ = naive(layer, x)
    out = layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    close_gradients(layer, x, (out * upstream).sum(), (expected * upstream).sum())
    flat = [e for mine in visited for e in mine]
    counts = [flat.count(e) for e in range(layer.router.moe.num_experts)]
    assert layer.tokens_per_expert_E.tolist() == counts
    assert len(set(counts)) > 1


def test_selection_bias_moves_the_choice_and_not_the_weights() -> None:
    layer, x = made("mixtral", load_balance_coeff=1e-3), hidden(*SHAPE)
    bias = layer.router.selection_bias
    assert bias is not None
    assert bias.dtype == torch.float32
    with torch.no_grad():
        bias.copy_(torch.tensor([0.0, 0, 0, 0, 5, 5]))
        weights, experts, scores = layer.router(x)
        assert (experts.sort(-1).values == torch.tensor([4, 5])).all()
        pair = scores.gather(-1, experts)
        torch.testing.assert_close(weights, pair / pair.sum(-1, keepdim=True))
    assert "router.selection_bias" in layer.state_dict()
    assert "router.selection_bias" not in made("mixtral").state_dict()


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3"])
def test_balance_loss_adds_the_gradient_of_its_formula(kind: str) -> None:
    """arXiv:2412.19437, eq. 17 to 20, a sequence at a time, weighted as the step's loss is."""
    layer, x = made(kind, aux_loss_weight=0.3), hidden(*SHAPE)
    moe, (batch, seq_len, _) = layer.router.moe, SHAPE
    step_tokens = 40.0
    layer.balance_factor.fill_(1 / step_tokens)
    expected, visited, scores = naive(layer, x)
    shares = (scores / scores.sum(-1, keepdim=True)).view(batch, seq_len, -1)
    objective = expected.sum()
    for b in range(batch):
        mine = [e for token in visited[b * seq_len : (b + 1) * seq_len] for e in token]
        loss = torch.zeros(())
        for e in range(moe.num_experts):
            f = moe.num_experts / (moe.experts_per_token * seq_len) * mine.count(e)
            loss = loss + f * shares[b, :, e].mean()
        assert loss.item() > 1 / moe.num_experts
        objective = objective + 0.3 * loss * seq_len / step_tokens
    out = layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    close_gradients(layer, x, out.sum(), objective)
    # Without the loss the gate's gradient is another: the comparison above can fail.
    plain = torch.autograd.grad(made(kind)(x).sum(), x)[0]
    assert (plain - torch.autograd.grad(layer(x).sum(), x)[0]).abs().max() > 1e-3


def test_tokens_are_counted_once_under_checkpointing_and_not_in_evaluation() -> None:
    layer, x = made("mixtral"), hidden(*SHAPE)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert layer.tokens_per_expert_E.sum().item() == 2 * 5 * 2
    with torch.no_grad():
        layer.eval()(x)
    assert layer.tokens_per_expert_E.sum().item() == 2 * 5 * 2
    layer.train()(x)
    assert layer.tokens_per_expert_E.sum().item() == 2 * 2 * 5 * 2
    assert "tokens_per_expert_E" not in layer.state_dict()


def test_buffers_are_float32_after_a_cast_and_zero_after_materializing() -> None:
    with torch.device("meta"):
        layer = made_on_meta().to(torch.bfloat16)
    layer.to_empty(device="cpu")
    layer.tokens_per_expert_E.fill_(7)
    layer.init_buffers()
    bias = layer.router.selection_bias
    assert bias is not None
    assert bias.dtype == layer.balance_factor.dtype == torch.float32
    assert bias.tolist() == layer.tokens_per_expert_E.tolist() == [0] * 8
    assert layer.balance_factor.item() == 0


def made_on_meta() -> Moe:
    activation, moe = KINDS["deepseek_v3"]
    sizes = Model(
        family="deepseek_v3", dim=DIM, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2, ffn_dim=0,
        vocab_size=2, activation=activation, moe=moe,
    )  # fmt: skip
    return Moe(sizes, moe)


# --- grouped products -----------------------------------------------------------------------------

ENDS = torch.tensor([3, 3, 8, 9], dtype=torch.int32)


def test_looped_products_have_the_gradients_of_finite_differences() -> None:
    x = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: grouped_mm(x, w, ENDS), (x, w))
    torch.testing.assert_close(grouped_mm(x, w, ENDS)[3], w[2] @ x[3])
    torch.library.opcheck(looped_mm, (x, w, ENDS))


@pytest.mark.parametrize("width", [16, 12], ids=["kernel", "loop"])
def test_products_in_bf16_are_the_same_by_kernel_and_by_loop(width: int) -> None:
    x = torch.randn(9, width, dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(4, 8, width, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(9, 8, dtype=torch.bfloat16)
    got, looped = grouped_mm(x, w, ENDS), looped_mm(x, w, ENDS)
    assert torch.equal(got, looped)
    grads = torch.autograd.grad(got, (x, w), upstream)
    for mine, theirs in zip(grads, torch.autograd.grad(looped, (x, w), upstream), strict=True):
        assert torch.equal(mine, theirs)
    assert (grads[1][1] == 0).all()


def test_rearranged_copies_have_the_gradient_of_indexing() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    got = Rearrange.apply(x, order, order.argsort(), 2)
    expected = x[order // 2]
    assert torch.equal(got, expected)
    upstream = torch.randn(8, 3, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(got, x, upstream), torch.autograd.grad(expected, x, upstream)
    )


def test_parameters_that_read_as_bfloat16_reach_the_experts() -> None:
    layer, x = made("gpt_oss"), hidden(*SHAPE)
    expected = layer(x)
    compute_in(layer, torch.bfloat16)
    out = layer(x.bfloat16())
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    error = F.mse_loss(out.float(), expected) / expected.pow(2).mean()
    assert 0 < error.item() < 1e-3
    grads = [p.grad for p in layer.parameters()]
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    assert {grad.dtype for grad in grads if grad is not None} == {torch.float32}
