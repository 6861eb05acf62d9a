"""How fast this card multiplies bf16 matrices at best: the ceiling of a training step."""

import time

import torch
from workload import synchronize

# Rows, inner, columns: square, and the shapes of Llama 3 8B's and 1B's linears at 8,192 tokens.
SHAPES = ((8192, 8192, 8192), (16384, 8192, 8192), (8192, 4096, 14336), (8192, 8192, 2048))
SMALL_SHAPES = ((256, 256, 256),)


def matmul_ceiling(device: torch.device, seconds: float = 1.0) -> dict[str, float]:
    """TFLOP/s of each shape in bf16 on random numbers, the best of three runs, and "best".

    seconds: about how long each run takes. Numbers are random, since a GPU multiplies zeros faster.
    """
    found: dict[str, float] = {}
    for rows, inner, columns in SHAPES if device.type == "cuda" else SMALL_SHAPES:
        a = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
        b = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
        taken = _seconds_of(a, b, 3) / 3
        count = max(3, int(seconds / 3 / taken))
        best = min(_seconds_of(a, b, count) / count for _ in range(3))
        found[f"{rows}x{inner}x{columns}"] = 2 * rows * inner * columns / best / 1e12
    return {"best": max(found.values()), **found}


def _seconds_of(a: torch.Tensor, b: torch.Tensor, count: int) -> float:
    out = torch.empty(a.shape[0], b.shape[1], device=a.device, dtype=a.dtype)
    torch.mm(a, b, out=out)
    synchronize(a.device)
    start = time.perf_counter()
    for _ in range(count):
        torch.mm(a, b, out=out)
    synchronize(a.device)
    return time.perf_counter() - start
