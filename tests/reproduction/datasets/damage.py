"""Damage to files, drawn from a seed: flipped bits, a cut, swapped and inserted bytes, zeros, nothing left."""

from collections.abc import Callable

import numpy as np


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(0, len(changed), rng.integers(1, 9)):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(0, len(content))]


def swapped(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for first, second in rng.integers(0, len(changed), (rng.integers(1, 9), 2)):
        changed[first], changed[second] = changed[second], changed[first]
    return bytes(changed)


def zeroed(content: bytes, rng: np.random.Generator) -> bytes:
    first = int(rng.integers(0, len(content)))
    last = min(len(content), first + int(rng.integers(1, 65)))
    return content[:first] + bytes(last - first) + content[last:]


def inserted(content: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(0, len(content)))
    return content[:place] + rng.bytes(int(rng.integers(1, 17))) + content[place:]


def damaged_head(content: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits among the first 400 bytes, where headers are."""
    return flipped(content[:400], rng) + content[400:]


KINDS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    flipped,
    cut,
    swapped,
    zeroed,
    inserted,
    damaged_head,
)


def damage(content: bytes, seed: int) -> bytes:
    """`content` (not empty) with one kind of damage; the same for the same seed."""
    rng = np.random.default_rng(seed)
    return KINDS[seed % len(KINDS)](content, rng)
