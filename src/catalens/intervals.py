"""95 % intervals over products: exact ones of shares, a cluster bootstrap of all else, and paired differences.

    products = ["A17", "A17", "B02", "C33"]               the product that each row shows
    share(np.array([True, True, False, True]), products)  {"value": 0.75, "low": 0.09, "high": 1.0}

Photos of one product are right or wrong together: products are resampled, each with all of its rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Floats = NDArray[np.float64]
Figure = dict[str, float]
"""`{"value": ..., "low": ..., "high": ...}`, low and high bounding the 95 % interval."""
Statistic = Callable[[Floats], Floats]
"""Counts of each row in a resample, [..., n] -> the figure over it, [...]."""
Products = Sequence[object] | None
"""The product that each row shows; None where every row shows another one."""

RISK = 0.05
CELLS = 2_000_000
"""Counts of resamples that are in memory at once."""


def clusters(products: Products, rows: int) -> NDArray[np.intp]:
    """Number the products from 0 in order of appearance, [rows]."""
    if products is None:
        return np.arange(rows)
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(product, len(numbers)) for product in products], np.intp)


def product_weights(products: Products, rows: int) -> Floats:
    """Weights with which every product counts once, [rows]."""
    cluster = clusters(products, rows)
    return 1 / np.bincount(cluster)[cluster]


def share(hits: NDArray[Any], products: Products = None, weights: Floats | None = None) -> Figure:
    """Estimate the weighted share of hits, with an exact interval that does not close up where all or none are hits.

    The interval is that of Clopper and Pearson (1934) on the effective number of rows (Korn and Graubard, 1998): rows
    by the design effect, which is 1 where no product has two rows. It is estimated with two made-up products of the
    mean size beside the others, one all hits and one none, so that few products, or products that are all alike, give
    rows of one product no more weight than one row.
    """
    weights = np.ones(len(hits)) if weights is None else weights
    cluster = clusters(products, len(hits))
    mass, found = np.bincount(cluster, weights), np.bincount(cluster, weights * hits)
    value = min(1.0, float(found.sum() / mass.sum()))
    fewest, most = mass.sum() ** 2 / (mass**2).sum(), mass.sum() ** 2 / (weights**2).sum()
    count, mean = len(mass), mass.mean()
    mass, found = np.append(mass, [mean, mean]), np.append(found, [0, mean])
    middle = found.sum() / mass.sum()
    spread = ((found - middle * mass) ** 2).sum() * (count + 2) / (count + 1) / mass.sum() ** 2
    rows = float(np.clip(middle * (1 - middle) / spread * count / (count + 2), fewest, most))
    right = value * rows
    low = beta.ppf(RISK / 2, right, rows - right + 1) if right > 0 else 0.0
    high = beta.ppf(1 - RISK / 2, right + 1, rows - right) if right < rows else 1.0
    return {"value": value, "low": float(low), "high": float(high)}


def mean(values: NDArray[Any]) -> Statistic:
    """Make the mean of a value of each row."""
    values = values.astype(float)
    return lambda counts: counts @ values / counts.sum(axis=-1)


def ratio(parts: Floats) -> Statistic:
    """Make the sum of a part over the sum of a whole, of (part, whole) of each row, [n, 2]."""
    return lambda counts: counts @ parts[:, 0] / (counts @ parts[:, 1])


def median(values: Floats) -> Statistic:
    """Make the median of a value of each row."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]

    def statistic(counts: Floats) -> Floats:
        seen = counts[..., order].cumsum(axis=-1)
        rows = seen[..., -1:]
        lower, upper = (ascending[(seen <= index).sum(axis=-1)] for index in ((rows - 1) // 2, rows // 2))
        return (lower + upper) / 2

    return statistic


def bootstrap(
    statistics: Mapping[str, Statistic], rows: int, products: Products = None, resamples: int = 1000, seed: int = 0
) -> dict[str, Figure]:
    """Estimate figures with percentile intervals (Efron, 1979) over the same resampled products."""
    drawn = _over_resamples(statistics, clusters(products, rows), resamples, seed)
    everything = np.ones(rows)
    return {name: _figure(float(statistic(everything)), drawn[name]) for name, statistic in statistics.items()}


def paired(
    statistics: Mapping[str, Statistic],
    rows: int,
    products: Products = None,
    made_up: int = 0,
    resamples: int = 10_000,
) -> dict[str, Figure]:
    """Estimate figures of one system less those of another on the same rows, each with its two-sided `p`.

    Statistics are over 2 x `rows`: the rows as the first system has them, then as the other has them. The last
    `made_up` rows widen the intervals and are not in the figures.
    """

    def difference(statistic: Statistic) -> Statistic:
        def over(counts: Floats) -> Floats:
            none = np.zeros_like(counts)
            first, other = np.concatenate([counts, none], -1), np.concatenate([none, counts], -1)
            return statistic(other) - statistic(first)

        return over

    differences = {name: difference(statistic) for name, statistic in statistics.items()}
    cluster = clusters(products, rows)
    drawn = _over_resamples(differences, cluster, resamples)
    real = (np.arange(rows) < rows - made_up).astype(float)
    figures = {}
    for name, statistic in differences.items():
        beyond = min((drawn[name] <= 0).sum(), (drawn[name] >= 0).sum())
        p = min(1.0, 2 * float(beyond + 1) / (resamples + 1)) if cluster.any() else 1.0  # of one product
        figures[name] = _figure(float(statistic(real)), drawn[name]) | {"p": p}
    return figures


def holm(ps: Sequence[float]) -> list[bool]:
    """Decide which of several claims hold, so that the chance of any false one is at most 5 % (Holm, 1979)."""
    held = [False] * len(ps)
    for index, n in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        if ps[n] > RISK / (len(ps) - index):
            break
        held[n] = True
    return held


def _over_resamples(
    statistics: Mapping[str, Statistic], cluster: NDArray[np.intp], resamples: int, seed: int = 0
) -> dict[str, Floats]:
    """Each statistic over resampled products, [resamples]."""
    parts: dict[str, list[Floats]] = {name: [] for name in statistics}
    for counts in _resampled(cluster, resamples, seed):
        for name, statistic in statistics.items():
            parts[name].append(statistic(counts))
    return {name: np.concatenate(found) for name, found in parts.items()}


def _resampled(cluster: NDArray[np.intp], resamples: int, seed: int) -> Iterator[Floats]:
    """Counts of each row in resamples of the products, [some, rows]."""
    rng, count = np.random.default_rng(seed), int(cluster.max()) + 1
    together = max(1, CELLS // len(cluster))
    for start in range(0, resamples, together):
        size = min(together, resamples - start)
        places = rng.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        counts = np.bincount(places.ravel(), minlength=size * count).reshape(size, count)
        yield counts[:, cluster].astype(float)


def _figure(value: float, drawn: Floats) -> Figure:
    low, high = np.quantile(drawn, [RISK / 2, 1 - RISK / 2])
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}
