"""Order: which sample is the i-th of the whole training.

A pure function of (seed, global sample index), computed in O(1) time and memory, so that a run
resumes anywhere, at any number of ranks, by nothing but the index. Two parts:

- Within a source, each epoch is a permutation of its samples: a Feistel network over a domain
  a x b >= n, walked until it lands below n (Black and Rogaway, "Ciphers with Arbitrary Finite
  Domains", CT-RSA 2002, https://eprint.iacr.org/2001/012, the generalized-Feistel construction).
- Between sources, a fixed table of PERIOD slots deals the global index out by weight.
"""

import hashlib
import math
import random
import struct
from collections.abc import Sequence
from functools import lru_cache

from titan_recipes.errors import ConfigError, Problem

NUM_ROUNDS = 6
PERIOD = 10_000
"""Samples in which a mixture's shares are met exactly: a hundredth of a percent is one sample."""

_MASK = 2**64 - 1


@lru_cache(maxsize=256)
def _round_keys(name: str) -> tuple[int, ...]:
    digest = hashlib.blake2b(name.encode(), digest_size=8 * NUM_ROUNDS).digest()
    return struct.unpack(f"<{NUM_ROUNDS}Q", digest)


def _mix(x: int) -> int:
    """splitmix64's finalizer (Steele, Lea, Flood 2014): 64 bits in, 64 well-mixed bits out."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def permute(index: int, n: int, name: str) -> int:
    """Where the permutation of range(n) called `name` sends `index`; every name has its own."""
    assert 0 <= index < n
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    keys = _round_keys(name)
    while True:
        left, right = divmod(index, b)
        for i in range(0, NUM_ROUNDS, 2):
            left = (left + _mix(keys[i] ^ right)) % a
            right = (right + _mix(keys[i + 1] ^ left)) % b
        index = left * b + right
        if index < n:
            return index


def _shares(weights: Sequence[float]) -> list[int]:
    """Slots of each source in one period, by largest remainder."""
    total = math.fsum(weights)
    exact = [PERIOD * weight / total for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: PERIOD - sum(counts)]:
        counts[i] += 1
    return counts


class SampleOrder:
    """The order of samples over weighted sources, each repeated as often as it takes."""

    def __init__(
        self, num_samples: Sequence[int], weights: Sequence[float], *, seed: int, shuffle: bool
    ) -> None:
        """num_samples, weights: of each source. Raises ConfigError for a weight too small."""
        counts = _shares(weights)
        if 0 in counts:
            number = counts.index(0)
            got = f"{weights[number]} of {math.fsum(weights)} in all is less than 1 in {PERIOD:,}"
            problem = Problem("train.toml", f"data.sources.{number}.weight", got, "raise it")
            raise ConfigError([problem])
        self._num_samples = tuple(num_samples)
        self._counts = counts
        self._seed = seed
        self._shuffle = shuffle
        # Slot j of a source lies at a random place of its j-th of `count` equal stretches: every
        # stretch of the training, not only a whole period, holds close to the right shares.
        drawn = random.Random(f"titan-recipes mixture {seed}")
        slots = sorted(
            ((j + drawn.random()) / count, source, j)
            for source, count in enumerate(counts)
            for j in range(count)
        )
        self._table = [(source, j) for _, source, j in slots]

    def locate(self, index: int) -> tuple[int, int]:
        """The (source, sample) at a global sample index."""
        period, slot = divmod(index, PERIOD)
        source, j = self._table[slot]
        n = self._num_samples[source]
        epoch, position = divmod(period * self._counts[source] + j, n)
        if not self._shuffle:
            return source, position
        return source, permute(position, n, f"{self._seed}/{source}/{epoch}")
