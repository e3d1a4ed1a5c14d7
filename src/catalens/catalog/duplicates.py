"""Pictures that show the same: resized, re-encoded, recoloured or mirrored copies of one another.

    fingerprint(scarf.jpg)                   32 bytes
    fingerprint(the same, 40 % smaller)      32 bytes, some 2 of their 256 bits different
    fingerprint(another scarf)               about 120 bits different

The fingerprint is the perceptual hash of imagehash (which of the 16 x 16 lowest frequencies are strong) over the
picture's edges, whatever their colour, so that a hue matters little. `benchmarks/near_duplicates.py` prints how
many copies of each sort `THRESHOLD` finds, and how many pairs of different products it takes for copies.
"""

import itertools
from collections.abc import Iterator

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
BITS = SIDE * SIDE
THRESHOLD = 24
"""Most bits in which the fingerprints of two copies differ."""
BAND_BYTES = 2
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
    Of many rows with one and the same fingerprint, each is paired with the first only.
    """
    if len(fingerprints) == 0:
        return np.empty((0, 2), np.intp)
    unique, first, inverse = np.unique(fingerprints, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    later = np.flatnonzero(first[inverse] != np.arange(len(fingerprints)))
    found = [np.stack([first[inverse[later]], later], axis=1)]
    seen = np.concatenate([unique, unique ^ _mirror()])  # [2u, 32]
    words = seen.view(np.uint64)  # [2u, 4]
    for left, right in _candidates(seen, len(unique)):
        near = np.bitwise_count(words[left] ^ words[right]).sum(axis=1) <= threshold
        pairs = np.stack([first[left[near]], first[right[near] % len(unique)]], axis=1)
        found.append(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1))
    return np.unique(np.concatenate(found).astype(np.intp), axis=0)


def _candidates(seen: NDArray[np.uint8], upright: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Positions of rows that agree in a band: on the left one of the upright ones, on the right any."""
    for band in range(0, seen.shape[1], BAND_BYTES):
        keys = np.ascontiguousarray(seen[:, band : band + BAND_BYTES]).view(np.uint16)[:, 0]
        order = np.argsort(keys, kind="stable")  # upright rows first within a bucket
        starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
        ends = np.append(starts[1:], len(order))
        end = np.repeat(ends, ends - starts)
        at = np.flatnonzero(order < upright)
        # every row with the one `step` places further in its bucket, until no bucket is that long
        for step in itertools.count(1):
            at = at[at + step < end[at]]
            if not at.size:
                break
            yield order[at], order[at + step]


def _mirror() -> NDArray[np.uint8]:
    """The bits that a mirrored picture turns over: those of odd horizontal frequencies."""
    return np.packbits(np.tile(np.arange(SIDE) % 2 == 1, SIDE))
