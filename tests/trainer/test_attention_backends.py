"""FlexAttention's and FlashAttention's cores against the one that writes masks out."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from titan_recipes.trainer.model.attention_core import AttentionCore
from titan_recipes.trainer.model.flex_core import FlexCore, positions_mask
from titan_recipes.trainer.model.varlen_core import VarlenCore, document_borders

SEQ_LEN = 300
"""More than two tiles of 128, and not whole ones."""
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def inputs(device: str, dtype: torch.dtype, *, key_width: int, value_width: int) -> list[Tensor]:
    """q, k, v and sinks: 4 query heads on 2 key heads."""
    torch.manual_seed(0)
    shapes = [(2, 4, SEQ_LEN, key_width), (2, 2, SEQ_LEN, key_width), (2, 2, SEQ_LEN, value_width)]
    drawn = [torch.randn(shape).to(device, dtype) for shape in shapes]
    return [*drawn, torch.randn(4).to(device)]


def documents_BS(device: str) -> Tensor:
    borders = torch.tensor([[3, 210], [100, 101]], device=device)
    places = torch.arange(SEQ_LEN, device=device)
    return (places[None, :, None] >= borders[:, None, :]).sum(-1)


def attended(core: AttentionCore, given: list[Tensor], documents: Tensor | None) -> Tensor:
    q, k, v, sinks_N = given
    mask = core.mask(SEQ_LEN, documents, q.device)
    return core(q, k, v, mask, sinks_N if core.has_sinks else None)


CASES = [
    {"soft_cap": cap, "window": window, "has_sinks": sinks}
    for cap, window, sinks in itertools.product((0.0, 2.0), (0, 5, 150), (False, True))
]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("with_documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_flex_equals_masks_written_out(case: dict[str, Any], with_documents: bool) -> None:
    given = inputs("cpu", torch.float32, key_width=24, value_width=16)
    documents = documents_BS("cpu") if with_documents else None
    outs = [
        attended(kind(scale=0.3, **case), given, documents) for kind in (AttentionCore, FlexCore)
    ]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)


def test_flex_leaves_plain_layers_alone_and_makes_masks_of_positions_once() -> None:
    assert FlexCore(scale=1.0, soft_cap=0.0, window=SEQ_LEN).mask(SEQ_LEN, None, CPU) is None
    masks = [FlexCore(scale=1.0, soft_cap=0.0, window=5).mask(SEQ_LEN, None, CPU) for _ in range(2)]
    assert masks[0] is masks[1] is positions_mask(SEQ_LEN, 5, CPU)
    assert isinstance(masks[0], BlockMask)
    # 3 x 3 tiles; a window of 5 needs those on the diagonal and below it.
    assert masks[0].to_dense()[0, 0].tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_borders_are_where_documents_and_sequences_begin() -> None:
    documents = torch.tensor([[0, 0, 1, 2, 2], [2, 2, 2, 2, 5]])
    borders = document_borders(documents)
    assert borders.dtype == torch.int32
    assert borders.tolist() == [0, 2, 3, 5, 9, 10]


def with_gradients(
    core: AttentionCore, given: list[Tensor], documents: Tensor | None
) -> list[Tensor]:
    used = [x.detach().requires_grad_() for x in given[: 4 if core.has_sinks else 3]]
    out = attended(core, [*used, *given[len(used) :]], documents)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad(out, used, upstream)]


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_flex_has_the_gradients_of_masks_written_out(
    case: dict[str, Any], with_documents: bool, dtype: torch.dtype
) -> None:
    torch._dynamo.reset()
    given = inputs("cuda", dtype, key_width=64, value_width=64)
    documents = documents_BS("cuda") if with_documents else None
    exact = with_gradients(
        AttentionCore(scale=0.125, **case), [x.double() for x in given], documents
    )
    found = with_gradients(FlexCore(scale=0.125, **case), given, documents)
    # float32 products may be taken in tf32, with 11 bits.
    bound = 3e-3 if dtype == torch.float32 else 3e-2
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).norm() < bound * b.norm()


@needs_gpu
@pytest.mark.parametrize("window", [0, 5, 150])
def test_varlen_has_the_gradients_of_masks_written_out(window: int) -> None:
    given = inputs("cuda", torch.bfloat16, key_width=64, value_width=64)
    options: dict[str, Any] = {"scale": 0.125, "soft_cap": 0.0, "window": window}
    exact = with_gradients(
        AttentionCore(**options), [x.double() for x in given], documents_BS("cuda")
    )
    found = with_gradients(VarlenCore(**options), given, documents_BS("cuda"))
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).norm() < 3e-2 * b.norm()
