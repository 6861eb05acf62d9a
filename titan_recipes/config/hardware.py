"""The GPU table that plans, planner and MFU share: memory and dense bf16 peak of each model.

Figures are the vendors' data sheets', without sparsity. A GPU that is not here has no MFU: a
missing figure is better than a wrong one.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU model. names: lower-case words of the device's own name that tell it apart."""

    memory_gib: float
    bf16_tflops: float
    names: tuple[str, ...]


GPUS: dict[str, Gpu] = {
    "a100": Gpu(80, 312, ("a100-sxm4-80gb", "a100 80gb")),
    "a100-40gb": Gpu(40, 312, ("a100-sxm4-40gb", "a100-pcie-40gb")),
    "h100": Gpu(80, 989, ("h100 80gb hbm3", "h100 sxm")),
    "h100-pcie": Gpu(80, 756, ("h100 pcie",)),
    "h100-nvl": Gpu(94, 835, ("h100 nvl",)),
    "h200": Gpu(141, 989, ("h200",)),
    "h200-nvl": Gpu(141, 835, ("h200 nvl",)),
    "b200": Gpu(180, 2250, ("b200",)),
    "l40s": Gpu(48, 362, ("l40s",)),
    "l40": Gpu(48, 181, ("l40",)),
    "l4": Gpu(24, 121, ("l4",)),
    "a10g": Gpu(24, 70, ("a10g",)),
    "mi250x": Gpu(64, 191.5, ("mi250x",)),
    "mi300x": Gpu(192, 1307, ("mi300x",)),
}
"""Peaks of one device as torch sees it (an MI250X shows as two)."""

NO_GPU = "cpu"
ANY_GPU = "any"


def find_gpu(device_name: str) -> str | None:
    """The table's key for a device's own name ("NVIDIA H100 80GB HBM3" -> "h100"), or None.

    Whole words count, the longest match wins: an L40S is no L4, a GB200 no B200. A slice of a
    card ("... MIG 3g.40gb") is none of them.
    """
    name = device_name.lower()
    if re.search(r"\bmig\b", name):
        return None
    fitting = [
        (len(words), key)
        for key, gpu in GPUS.items()
        for words in gpu.names
        if re.search(rf"\b{re.escape(words)}\b", name)
    ]
    return max(fitting)[1] if fitting else None


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 peak in TFLOP/s of a device by its own name; None where it is not in the table."""
    key = find_gpu(device_name)
    return GPUS[key].bf16_tflops if key else None
