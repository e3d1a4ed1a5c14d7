"""Pictures that show the same: resized, re-encoded, recoloured or mirrored copies of one another.

    fingerprint(scarf.jpg)                   32 bytes
    fingerprint(the same, 40 % smaller)      32 bytes, some 2 of their 256 bits different
    fingerprint(another scarf)               about 120 bits different

The fingerprint is the perceptual hash of imagehash (which of the 16 x 16 lowest frequencies are strong) over the
picture's edges, whatever their colour, so that a hue matters little. `benchmarks/near_duplicates.py` prints how
many copies of each sort `THRESHOLD` finds, and how many pairs of different products it takes for copies.
"""

from collections.abc import Iterator

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from catalens.catalog.splits import components

SIDE = 16
BITS = SIDE * SIDE
THRESHOLD = 24
"""Most bits in which the fingerprints of two copies differ."""
BAND_BYTES = 2
FEW = 16
"""Fingerprints that agree in a band up to which all of them are compared."""
WORKING_SIDE = 4 * SIDE  # what imagehash scales to


def fingerprint(picture: Image.Image) -> bytes:
    """32 bytes that say what an RGB picture shows, bit by bit alike for copies."""
    small = picture.convert("RGB").resize((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    down, right = np.gradient(np.asarray(small, np.float32), axis=(0, 1))
    edges = np.sqrt((down**2 + right**2).sum(axis=2))  # [64, 64], over the three colours
    edges *= 255 / max(float(edges.max()), 1e-6)
    return np.packbits(imagehash.phash(Image.fromarray(edges.astype(np.uint8)), hash_size=SIDE).hash).tobytes()


def near_pairs(fingerprints: NDArray[np.uint8], threshold: int = THRESHOLD) -> NDArray[np.intp]:
    """Pairs (i, j), i < j, [pairs, 2], of rows whose fingerprints [rows, 32] are those of copies, mirrored or not.

    Only rows that agree in one of 16 bands of bits are compared (locality-sensitive hashing), so the work grows with
    the rows and not with their square; a pair that differs in 16 bits spread at random is missed once in a thousand.
    Where many rows look alike there are pairs enough to link all of them, but not every pair: of equal fingerprints
    each is paired with the first only, and of more than `FEW` that agree in a band, those not linked yet.
    """
    if len(fingerprints) == 0:
        return np.empty((0, 2), np.intp)
    unique, first, inverse = np.unique(fingerprints, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # in the order of the rows
    first, inverse = first[order], np.argsort(order)[inverse.reshape(-1)]
    seen = np.concatenate([unique[order], unique[order] ^ _mirror()])  # [2u, 32]
    words = seen.view(np.uint64)  # [2u, 4]
    links = np.empty((0, 2), np.intp)  # of the u distinct ones
    for band in range(0, seen.shape[1], BAND_BYTES):
        keys = np.ascontiguousarray(seen[:, band : band + BAND_BYTES]).view(np.uint16)[:, 0]
        groups = components(links, len(first))
        links = np.concatenate([links, *_band_links(keys, words, groups, threshold)])
        links = np.unique(np.sort(links, axis=1), axis=0)
    later = np.flatnonzero(first[inverse] != np.arange(len(fingerprints)))
    equal = np.stack([first[inverse[later]], later], axis=1)
    return np.unique(np.concatenate([equal, first[links]]).astype(np.intp), axis=0)


def _band_links(
    keys: NDArray[np.uint16], words: NDArray[np.uint64], groups: NDArray[np.intp], threshold: int
) -> Iterator[NDArray[np.intp]]:
    """Links between near ones that agree in a band; `keys` [2u] and `words` [2u, 4] are those of u and u mirrored."""
    upright = len(groups)
    order = np.argsort(keys, kind="stable")  # upright ones first within a bucket
    starts = np.flatnonzero(np.diff(keys[order].astype(np.int64), prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    end = np.repeat(starts + sizes, sizes)
    at = np.flatnonzero((order < upright) & np.repeat(sizes <= FEW, sizes))
    for step in range(1, FEW):  # every one with the one `step` further in its bucket
        at = at[at + step < end[at]]
        left, right = order[at], order[at + step]
        near = np.bitwise_count(words[left] ^ words[right]).sum(axis=1) <= threshold
        yield _different(left[near], right[near] % upright)
    for bucket in np.flatnonzero(sizes > FEW):
        yield from _bucket_links(order[starts[bucket] : starts[bucket] + sizes[bucket]], words, groups, threshold)


def _bucket_links(
    members: NDArray[np.intp], words: NDArray[np.uint64], groups: NDArray[np.intp], threshold: int
) -> Iterator[NDArray[np.intp]]:
    """Links that join near members of different groups, until those of a group need no more."""
    rows = members % len(groups)
    group = groups[rows]
    for index in range(np.count_nonzero(members < len(groups))):
        others = index + 1 + np.flatnonzero(group[index + 1 :] != group[index])
        if not others.size:
            return
        near = others[np.bitwise_count(words[members[index]] ^ words[members[others]]).sum(axis=1) <= threshold]
        if near.size:
            yield _different(np.full(near.size, rows[index]), rows[near])
            group[np.isin(group, group[near], kind="table")] = group[index]


def _different(left: NDArray[np.intp], right: NDArray[np.intp]) -> NDArray[np.intp]:
    """Pairs [pairs, 2] without those of one and itself, mirrored."""
    return np.stack([left, right], axis=1)[left != right]


def _mirror() -> NDArray[np.uint8]:
    """The bits that a mirrored picture turns over: those of odd horizontal frequencies."""
    return np.packbits(np.tile(np.arange(SIDE) % 2 == 1, SIDE))
