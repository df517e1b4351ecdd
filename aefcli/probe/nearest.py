"""Exact nearest neighbours of many queries among many vectors, in blocks of bounded memory.

Every pair is weighed once, by a matrix product in single precision. That product only rules out: groups of vectors
that could hold a neighbour, given how far off it may be, are weighed again in double precision. So the answer is that
of a search in double precision, at the speed of single.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

_BLOCK = 512  # queries at a time
_VECTORS = 1024  # in one product: with 512 queries its result stays in the second-level cache
_SMALL = 1 << 25  # pairs of vectors and queries below which threads cost more than they give
_AGAIN = 1 << 18  # numbers that are weighed again at a time
_ROUNDING = 2.0**-24  # of single precision


def nearest(x: np.ndarray, queries: np.ndarray, k: int, block: int = _BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `x` (n, d) nearest to each row of `queries` (m, d) by L2: nearest first, ties by lowest index.

    Answers their numbers, int64 (m, k), and squared distances, float64 (m, k): sums of squared differences in double
    precision. k is n where `x` has fewer rows. `block` queries are weighed at a time, on as many threads as BLAS may
    use; memory is some 30 MB per thread beside `x`, two copies of it, and the answer. Vectors are finite. Those of unit
    length have the same neighbours by cosine.
    """
    assert x.ndim == queries.ndim == 2, f"vectors are (n, d), not {x.shape} and {queries.shape}"
    assert x.shape[1] == queries.shape[1], f"vectors of {x.shape[1]} and queries of {queries.shape[1]} numbers"
    assert len(x) > 0, "no vectors"
    assert k > 0, f"{k} neighbours"
    vectors = _Vectors.of(x, min(k, len(x)))
    index = np.empty((len(queries), vectors.k), np.int64)
    distance = np.empty((len(queries), vectors.k), np.float64)

    def search(at: int) -> None:
        some = slice(at, at + block)
        index[some], distance[some] = vectors.search(queries[some].astype(np.float64))

    starts = range(0, len(queries), block)
    if len(queries) * len(x) <= _SMALL:
        for at in starts:
            search(at)
    else:
        _on_threads(search, starts)
    return index, distance


def _on_threads(search: Callable[[int], None], starts: Iterable[int]) -> None:
    """One thread per core and BLAS on one each: what follows a product is numpy's, which has no threads of its own."""
    from threadpoolctl import threadpool_info, threadpool_limits

    count = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(count) as threads:
        for _ in threads.map(search, starts):
            pass


@dataclass(frozen=True, eq=False)
class _Vectors:
    """The vectors, ready to be searched. Groups are of consecutive rows.

    double  float64 (groups, width, d): `x`, zeros behind its end
    single  float32 (groups * width, d + 1): centred and scaled to lengths of at most 1; half their squares, infinite
            behind the end, in the last column
    """

    k: int
    count: int
    double: np.ndarray
    single: np.ndarray
    centre: np.ndarray
    scale: float

    @classmethod
    def of(cls, x: np.ndarray, k: int) -> _Vectors:
        count, size = x.shape
        width = _width(count, k)
        groups = -(-count // width)
        double = np.zeros((groups, width, size))
        rows = double.reshape(-1, size)
        rows[:count] = x
        assert np.isfinite(rows).all(), "vectors are finite"
        centre = rows[:count].mean(axis=0)
        centred = rows[:count] - centre
        scale = float(np.sqrt(np.square(centred).sum(axis=1).max())) or 1.0
        single = np.zeros((groups * width, size + 1), np.float32)
        single[:, size] = np.inf
        single[:count, :size] = centred / scale
        single[:count, size] = np.square(centred / scale).sum(axis=1) / 2
        return cls(k, count, double, single, centre, scale)

    def search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and squared distances, (m, k) each, for float64 queries (m, d)."""
        assert np.isfinite(queries).all(), "queries are finite"
        query, group, reach = self._candidates(queries)
        index = np.empty((len(queries), self.k), np.int64)
        distance = np.empty((len(queries), self.k), np.float64)
        ends = np.searchsorted(query, np.arange(len(queries)), side="right")
        first = 0
        while first < len(queries):
            # A run of queries whose candidates are few enough to hold; at least one
            start = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + _AGAIN // self.double.shape[1], side="right")))
            pairs = slice(start, ends[last - 1])
            index[first:last], distance[first:last] = self._best(
                queries[first:last], query[pairs] - first, group[pairs], reach[first:last]
            )
            first = last
        return index, distance

    def _candidates(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of a query and a group that may hold one of its k nearest, by query and group; and the squared
        distance (m,) beyond which nothing of a query's k nearest can lie.

        What is weighed is |x|^2 / 2 - x.q, which orders as distances do. k groups have a vector as light as the k-th
        lightest group, so the k nearest weigh no more than that, but for the error of the product: with lengths of
        x up to 1 at most (d + 4) roundings of |q| + 1/2, on either side. The last term is for the rounding of double
        precision, in which a query far away may find vectors equally near that are not.
        """
        groups, width, size = self.double.shape
        shifted = (queries - self.centre) / self.scale
        length = np.sqrt(np.square(shifted).sum(axis=1))
        turned = np.empty((size + 1, len(queries)), np.float32)
        # Of a query that is out of the reach of single precision nothing is ruled out
        with np.errstate(over="ignore", invalid="ignore"):
            np.negative(shifted.T, out=turned[:size], casting="same_kind")
            turned[size] = 1
            lightest = np.empty((groups, len(queries)), np.float32)
            step = max(1, _VECTORS // width)
            buffer = np.empty((step * width, len(queries)), np.float32)
            for at in range(0, groups, step):
                some = self.single[at * width : (at + step) * width]
                weights = np.matmul(some, turned, out=buffer[: len(some)])
                np.minimum.reduce(weights.reshape(-1, width, len(queries)), axis=1, out=lightest[at : at + step])
            by_query = np.ascontiguousarray(lightest.T)
            bound = np.partition(by_query, self.k - 1, axis=1)[:, self.k - 1].astype(np.float64)
            bound[~np.isfinite(bound)] = np.inf
            bound += 2.02 * (size + 4) * _ROUNDING * (length + 0.5) + 1e-13 * size * length**2
            query, group = np.nonzero(~(by_query > bound[:, None]))
        return query, group, (length**2 + 2 * bound) * self.scale**2

    def _best(
        self, queries: np.ndarray, query: np.ndarray, group: np.ndarray, reach: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of each query (m, d) in its candidate groups: pairs (query, group) ordered by both."""
        _, width, size = self.double.shape
        found = []
        step = max(1, _AGAIN // (width * size))
        for at in range(0, len(query), step):
            one, other = query[at : at + step], group[at : at + step]
            away = self.double[other]
            away -= queries[one, None]
            distance = np.einsum("pwd,pwd->pw", away, away)
            row, column = np.nonzero(~(distance > reach[one, None]))
            found.append((one[row], distance[row, column], other[row] * width + column))
        whose, distance, index = (np.concatenate(part) for part in zip(*found, strict=True))
        whose, distance, index = (part[index < self.count] for part in (whose, distance, index))
        order = np.lexsort((distance, whose))  # stable, and indices rise: ties stay in their order
        first = np.searchsorted(whose, np.arange(len(queries)))
        chosen = order[first[:, None] + np.arange(self.k)]
        return index[chosen], distance[chosen]


def _width(count: int, k: int) -> int:
    """Vectors in a group: many make the lightest of each few, and few make little to weigh again. At least k groups."""
    return int(max(1, min(32, (count / 50) ** 0.5, count // (4 * k))))
