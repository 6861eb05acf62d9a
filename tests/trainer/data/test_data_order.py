"""The order of samples is a bijection in each epoch, differs between epochs, and keeps shares."""

import itertools
from collections import Counter

import pytest

from titan_recipes.errors import ConfigError
from titan_recipes.trainer.data.order import PERIOD, SampleOrder, permute


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 97, 100, 101, 1000, 4097])
def test_permute_any_size_is_bijection(n: int) -> None:
    assert sorted(permute(i, n, "some name") for i in range(n)) == list(range(n))


def test_permute_trillions_of_samples_stays_in_range() -> None:
    n = 10**12 + 39
    images = [permute(i, n, "large") for i in range(1000)]
    assert len(set(images)) == 1000
    assert all(0 <= image < n for image in images)
    assert 0.45 < sum(images) / 1000 / n < 0.55


def test_permute_neighbours_end_far_apart() -> None:
    n = 10_000
    images = [permute(i, n, "spread") for i in range(n)]
    mean_step = sum(abs(a - b) for a, b in itertools.pairwise(images)) / (n - 1)
    assert mean_step == pytest.approx(n / 3, rel=0.02)  # what a random permutation has
    assert sum(i == image for i, image in enumerate(images)) < 8  # 1 is expected


def _epoch(order: SampleOrder, n: int, epoch: int) -> list[int]:
    return [order.locate(epoch * n + i)[1] for i in range(n)]


def test_order_other_epoch_or_seed_is_other_permutation() -> None:
    n = 500
    first = SampleOrder([n], [1.0], seed=1, shuffle=True)
    second = SampleOrder([n], [1.0], seed=2, shuffle=True)
    orders = [_epoch(first, n, 0), _epoch(first, n, 1), _epoch(second, n, 0)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    for i, one in enumerate(orders):
        for other in orders[:i]:
            same = sum(a == b for a, b in zip(one, other, strict=True))
            assert same < 10  # 1 is expected


def test_order_unchanged_code_gives_recorded_values() -> None:
    """A run resumed with a later version must see the samples it would have seen."""
    order = SampleOrder([1000, 77], [0.8, 0.2], seed=42, shuffle=True)
    expected = [(0, 944), (0, 298), (0, 606), (1, 73), (0, 573), (0, 822)]
    assert [order.locate(i) for i in (0, 1, 2, 3, 12_345, 10**9)] == expected


def test_order_not_shuffled_is_stored_order() -> None:
    order = SampleOrder([3], [1.0], seed=0, shuffle=False)
    assert [order.locate(i) for i in range(7)] == [(0, i % 3) for i in range(7)]


def test_order_mixture_meets_shares_exactly_in_each_period() -> None:
    order = SampleOrder([50, 7, 1000], [0.5, 0.2, 0.3], seed=3, shuffle=True)
    for period in (0, 1, 41):
        sources = [order.locate(period * PERIOD + i)[0] for i in range(PERIOD)]
        assert Counter(sources) == {0: 5000, 1: 2000, 2: 3000}
        every_hundred = [Counter(sources[i : i + 100])[0] for i in range(0, PERIOD, 100)]
        assert min(every_hundred) >= 45
        assert max(every_hundred) <= 55


def test_order_mixture_reads_each_source_through_before_repeating() -> None:
    sizes = [50, 7, 1000]
    order = SampleOrder(sizes, [0.5, 0.2, 0.3], seed=3, shuffle=True)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for i in range(2 * PERIOD):
        source, sample = order.locate(i)
        seen[source].append(sample)
    for source, n in enumerate(sizes):
        for epoch in range(len(seen[source]) // n):
            assert sorted(seen[source][epoch * n : (epoch + 1) * n]) == list(range(n))


def test_order_unequal_weights_share_by_largest_remainder() -> None:
    order = SampleOrder([10, 10, 10], [1.0, 1.0, 1.0], seed=0, shuffle=True)
    counts = Counter(order.locate(i)[0] for i in range(PERIOD))
    assert sorted(counts.values()) == [3333, 3333, 3334]


def test_order_weight_below_resolution_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.sources\.1\.weight: 1e-06 of 1\.000001"):
        SampleOrder([10, 10], [1.0, 1e-6], seed=0, shuffle=True)
