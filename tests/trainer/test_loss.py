"""The loss through the output matrix, in chunks, against torch's cross-entropy of whole logits."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from titan_recipes.trainer.loss import CHUNK_BYTES, IGNORED, HeadLoss, loss_and_grad


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """(h_BSD, weight_VD, labels_BS): 12 tokens, two of them not counted."""
    generator = torch.Generator().manual_seed(0)
    h_BSD = torch.randn(2, 6, 8, generator=generator).to(dtype)
    weight_VD = (10 * torch.randn(11, 8, generator=generator)).to(dtype)
    labels_BS = torch.tensor([[0, 10, IGNORED, 3, 2, 5], [IGNORED, 1, 1, 5, 4, 9]])
    return h_BSD, weight_VD, labels_BS


def plain_loss(
    h_BSD: Tensor, weight_VD: Tensor, labels_BS: Tensor, soft_cap: float, z_weight: float
) -> Tensor:
    """What one would write by hand."""
    logits_TV = (h_BSD @ weight_VD.T).float().flatten(0, 1)
    if soft_cap:
        logits_TV = soft_cap * torch.tanh(logits_TV / soft_cap)
    labels_T = labels_BS.flatten()
    loss = F.cross_entropy(logits_TV, labels_T, ignore_index=IGNORED, reduction="sum")
    return loss + z_weight * logits_TV.logsumexp(1)[labels_T != IGNORED].square().sum()


@pytest.mark.parametrize("chunk_tokens", [-1, 0, 3, 5])
@pytest.mark.parametrize(
    ("soft_cap", "z_weight"), [(0.0, 0.0), (5.0, 0.0), (0.0, 1e-2), (5.0, 0.1)]
)
def test_chunked_loss_and_its_gradients_equal_those_of_whole_logits(
    chunk_tokens: int, soft_cap: float, z_weight: float
) -> None:
    *factors, labels_BS = inputs()
    h_BSD, weight_VD = (x.requires_grad_() for x in factors)
    expected = plain_loss(h_BSD, weight_VD, labels_BS, soft_cap, z_weight)
    grads = torch.autograd.grad(expected / 3, (h_BSD, weight_VD))
    loss = HeadLoss(chunk_tokens=chunk_tokens, soft_cap=soft_cap, z_weight=z_weight)
    found = loss(h_BSD, weight_VD, labels_BS, training=True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(torch.autograd.grad(found / 3, (h_BSD, weight_VD)), grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert loss(h_BSD, weight_VD, labels_BS, training=False).item() == pytest.approx(
        plain_loss(h_BSD, weight_VD, labels_BS, soft_cap, 0.0).item(), rel=1e-6
    )


def test_loss_of_bfloat16_is_computed_in_float32() -> None:
    h_BSD, weight_VD, labels_BS = inputs(torch.bfloat16)
    found = HeadLoss(chunk_tokens=4)(h_BSD, weight_VD, labels_BS, training=True)
    expected = plain_loss(h_BSD, weight_VD, labels_BS, 0.0, 0.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_frozen_matrix_gets_no_gradient() -> None:
    h_BSD, weight_VD, labels_BS = inputs()
    HeadLoss()(h_BSD.requires_grad_(), weight_VD, labels_BS, training=True).backward()
    assert weight_VD.grad is None
    assert h_BSD.grad is not None


@pytest.mark.parametrize(
    ("chunk_tokens", "tokens", "vocabulary", "chunks"),
    [
        (0, 8192, 128256, 1),
        (-1, 8192, 128256, 8),
        (-1, 8192, 2048, 1),
        (3, 12, 11, 4),
        (5, 12, 11, 3),
        (4, 13, 11, 4),  # no number of equal chunks near it: the last is shorter
    ],
)
def test_chunks_are_equal_where_they_can_be(
    chunk_tokens: int, tokens: int, vocabulary: int, chunks: int
) -> None:
    assert HeadLoss(chunk_tokens=chunk_tokens).num_chunks(tokens, vocabulary) == chunks
    if chunk_tokens == -1:
        assert 4 * vocabulary * tokens / chunks <= CHUNK_BYTES


def test_vocabulary_parallel_loss_on_one_rank_is_cross_entropy() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    group = dist.group.WORLD
    assert group is not None
    generator = torch.Generator().manual_seed(0)
    # Large enough that exp would overflow without the maximum taken out.
    logits_TV = 100 * torch.randn(10, 7, generator=generator)
    labels_T = torch.tensor([0, 6, IGNORED, 3, 2, IGNORED, 1, 1, 5, 4])
    expected = loss_and_grad(logits_TV.clone(), labels_T, z_weight=0.01)
    name = group.group_name
    found = loss_and_grad(logits_TV.clone(), labels_T, z_weight=0.01, group=name)
    dist.destroy_process_group()
    assert expected[0] > 100
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found[1][2].count_nonzero() == 0
