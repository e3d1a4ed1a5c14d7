"""Pictures that show the same: resized, re-encoded, recoloured or mirrored copies of one another.

    fingerprint(scarf.jpg)                   32 bytes
    fingerprint(the same, 40 % smaller)      32 bytes, some 2 of their 256 bits different
    fingerprint(another scarf)               about 120 bits different

The fingerprint is the perceptual hash of imagehash (which of the 16 x 16 lowest frequencies are strong) over the
picture's edges, whatever their colour, so that a hue matters little. `benchmarks/near_duplicates.py` prints how
many copies of each sort `THRESHOLD` finds, and how many pairs of different products it takes for copies.
"""

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
LINKS = 4
"""Of more, those that follow each of them in order that it is compared with."""
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

    Only rows that agree in one of 16 bands of bits are compared (locality-sensitive hashing): all of up to `FEW`, of
    more each with those next to it in the order of the bits from that band on. So the work grows with the rows and
    not with their square; a pair that differs in 16 bits spread at random is missed once in a thousand. Where many
    rows look alike there are pairs enough to link all of them, but not every pair: of equal fingerprints each is
    paired with the first only, and of more than `FEW` that agree in a band, those not linked yet.
    """
    if len(fingerprints) == 0:
        return np.empty((0, 2), np.intp)
    unique, first, inverse = np.unique(fingerprints, axis=0, return_index=True, return_inverse=True)
    mirror = np.packbits(np.tile(np.arange(SIDE) % 2 == 1, SIDE))  # turns over odd horizontal frequencies
    seen = np.concatenate([unique, unique ^ mirror])  # [2u, 32]
    words, upright = seen.view(np.uint64), len(unique)  # [2u, 4]
    links = np.empty((0, 2), np.intp)  # of the u distinct ones
    for band in range(0, seen.shape[1], BAND_BYTES):
        head = np.ascontiguousarray(np.roll(seen, -band, axis=1)[:, :8])
        bits = head.view(">u8")[:, 0].astype(np.uint64)
        order = np.argsort(bits, kind="stable")
        _, place, sizes = np.unique(bits[order] >> np.uint64(48), return_inverse=True, return_counts=True)
        group = np.tile(components(links, upright), 2)
        found = [links]
        for step in range(1, FEW):
            left, right = order[:-step], order[step:]
            use = (place[:-step] == place[step:]) & (np.minimum(left, right) < upright)
            use &= (sizes[place[step:]] <= FEW) | ((group[left] != group[right]) & (step <= LINKS))
            left, right = left[use], right[use]
            near = np.bitwise_count(words[left] ^ words[right]).sum(axis=1) <= threshold
            found.append(np.stack([left[near], right[near]], axis=1) % upright)
        links = _distinct(np.concatenate(found), upright)
    later = np.flatnonzero(first[inverse] != np.arange(len(fingerprints)))
    equal = np.stack([first[inverse[later]], later], axis=1)
    return _distinct(np.concatenate([equal, first[links]]), len(fingerprints))


def _distinct(pairs: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Pairs of `count` nodes, each once with the lower one first, in order; none of one and itself."""
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.stack(np.divmod(np.unique(pairs[:, 0] * count + pairs[:, 1]), count), axis=1)
