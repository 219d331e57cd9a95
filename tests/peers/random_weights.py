"""Weights made from a seed: the twin of models/src/random.rs, to the bit. Knows tensor names and shapes, no architecture.

    python random_weights.py    checks the building blocks against their published values
"""
import math

import numpy as np

U64 = np.uint64


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def splitmix64(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = x + U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        return z ^ (z >> U64(31))


def tensor(name: str, shape, seed: int) -> np.ndarray:
    """The f32 tensor `name`: `[rows, columns]` has variance 1 / columns; `[width]` lies in [0.9, 1.1)."""
    key = U64(fnv1a(name.encode()) ^ seed)
    with np.errstate(over="ignore"):
        counters = key + np.arange(math.prod(shape), dtype=np.uint64)
    u = (splitmix64(counters) >> U64(40)).astype(np.float64) / 2.0**24 - 0.5
    w = 2.0 * math.sqrt(3.0 / shape[1]) * u if len(shape) == 2 else 1.0 + 0.2 * u
    return w.astype(np.float32).reshape(shape)


if __name__ == "__main__":
    assert fnv1a(b"foobar") == 0x85944171F73967E8
    assert splitmix64(np.zeros(1, np.uint64))[0] == 0xE220A8397B1DCDAF
    print("ok")
