"""The memory of a CPU rank between two steps: kept, not given back.

Each step frees its activations and asks for as much again. glibc gives freed memory above a
threshold back to the kernel, which then has to hand out and clear every page anew: about 5,000 page
faults in a step of llama3_debug on one core, 2 to 4 percent of its time. Told to keep it, the rank
makes about 50, and its peak is the same. (mallopt(3); tensors beyond 32 MiB, the most that glibc
lets its threshold be, are still mapped one by one.)
"""

import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_KEPT = 32 << 20
NEVER = 2**31 - 1


def keep_pages(device: torch.device) -> None:
    """Have glibc keep what this process frees, where it trains on the CPU; other C libraries have
    no such switch and are left alone."""
    libc = ctypes.CDLL(None)
    if device.type == "cpu" and hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
