"""Seeded permutations of 0 … n−1 that store nothing: a Feistel network with cycle walking.

`permute(x, n, key)` is where element x of the identity goes; `invert` undoes it. Any x is found in constant time, so an
epoch of 10^10 samples is shuffled without an array. Only 64-bit integer arithmetic is used and none of numpy's random
generators (their streams may change between versions), so the result is the same on every platform.

How it works. With b = max(2, ⌈log2 n⌉), x is cut into a low part of ⌈b/2⌉ bits and a high part below H, the least
number that makes room for n elements. Eight rounds change, in turn, one part by a keyed hash of the other: the low part
by exclusive or, the high part by addition modulo H. Each round undoes itself, so whatever the hash, the network is a
bijection of the numbers below H · 2^⌈b/2⌉. A result ≥ n is put through again until it falls below n (cycle walking:
the orbit of x < n must return below n, and the map so defined is a bijection of 0 … n−1); that is rare, because fewer
than 2^⌈b/2⌉ numbers are too many. Sources: Luby and Rackoff, SIAM J. Comput. 17 (1988); Black and Rogaway, CT-RSA 2002
(cycle walking, parts of any size); the 64-bit mixer is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).

Shape suffixes: N elements of a vectorised call. Keys are integers below 2^64, made by `derive_key`.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A, _MIX_B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_HASH_A, _HASH_B = 0xD6E8FEB86659FD93, 0xA0761D6478BD642F
ROUNDS = 8
LARGEST = 1 << 52
# Odd multipliers turn one key into a key for each round.
_ROUND_ODD = tuple((_GOLDEN * (2 * r + 1) + 2 * _MIX_A) & MASK64 | 1 for r in range(ROUNDS))

_U = np.uint64


def mix64(value: int) -> int:
    """SplitMix64's finaliser: a bijection of the 64-bit integers in which every input bit reaches every output bit."""
    value = ((value ^ (value >> 30)) * _MIX_A) & MASK64
    value = ((value ^ (value >> 27)) * _MIX_B) & MASK64
    return value ^ (value >> 31)


def mix64_N(value_N: np.ndarray) -> np.ndarray:
    """`mix64` of every element; uint64 in, uint64 out."""
    value_N = (value_N ^ (value_N >> _U(30))) * _U(_MIX_A)
    value_N = (value_N ^ (value_N >> _U(27))) * _U(_MIX_B)
    return value_N ^ (value_N >> _U(31))


def derive_key(*parts: int) -> int:
    """One 64-bit key from a sequence of integers, each taken modulo 2^64; order and number of the parts matter."""
    state = len(parts)
    for part in parts:
        state = mix64((state + _GOLDEN + (part & MASK64) * _MIX_B) & MASK64)
    return state


def derive_key_N(head: tuple[int, ...], *tail_N: np.ndarray) -> np.ndarray:
    """`derive_key(*head, *tail)` for every element of the `tail_N` arrays (integers of one shape), as uint64."""
    state = len(head) + len(tail_N)
    for part in head:
        state = mix64((state + _GOLDEN + (part & MASK64) * _MIX_B) & MASK64)
    state_N = np.full(tail_N[0].shape, state, dtype=_U)
    for part_N in tail_N:
        state_N = mix64_N(state_N + _U(_GOLDEN) + part_N.astype(_U) * _U(_MIX_B))
    return state_N


@lru_cache(maxsize=4096)
def _round_keys(key: int) -> tuple[int, ...]:
    return tuple((key * odd) & MASK64 for odd in _ROUND_ODD)


def _parts(n: int) -> tuple[int, int]:
    """(bits of the low part, H)."""
    bits = max(2, (n - 1).bit_length())
    low_bits = bits - bits // 2
    return low_bits, -(-n >> low_bits)


def _check(x: int, n: int) -> None:
    if not 0 <= x < n:
        raise ValueError(f"a permutation of {n} elements has no element {x}")
    if n > LARGEST:
        raise ValueError(f"a permutation has at most 2^52 elements, not {n}")


def permute(x: int, n: int, key: int) -> int:
    """The image of x under the permutation of 0 … n−1 that `key` names. ValueError unless 0 ≤ x < n ≤ 2^52."""
    _check(x, n)
    return _walk(x, n, _round_keys(key), forward=True)


def invert(y: int, n: int, key: int) -> int:
    """The x with permute(x, n, key) == y. ValueError unless 0 ≤ y < n."""
    _check(y, n)
    return _walk(y, n, _round_keys(key), forward=False)


def _walk(x: int, n: int, keys: tuple[int, ...], forward: bool) -> int:
    """The network, again and again until the result is an element."""
    low_bits, num_high = _parts(n)
    low_shift, low_mask = 64 - low_bits, (1 << low_bits) - 1
    order = range(ROUNDS) if forward else range(ROUNDS - 1, -1, -1)
    while True:
        high, low = x >> low_bits, x & low_mask
        for r in order:
            value = ((high if r % 2 == 0 else low) ^ keys[r]) * _HASH_A & MASK64
            value = (value ^ (value >> 32)) * _HASH_B & MASK64
            if r % 2 == 0:
                low ^= value >> low_shift
            else:
                turn = (value >> 32) * num_high >> 32
                high = (high + (turn if forward else num_high - turn)) % num_high
        x = (high << low_bits) | low
        if x < n:
            return x


def permute_N(x_N: np.ndarray, n: ArrayLike, key: ArrayLike) -> np.ndarray:
    """`permute` of every element, as int64.

    `n` and `key` are integers or arrays (int64 and uint64) of the same shape. Raises ValueError as `permute`.
    """
    return _walk_N(x_N, n, key, forward=True)


def invert_N(y_N: np.ndarray, n: ArrayLike, key: ArrayLike) -> np.ndarray:
    """`invert` of every element, as int64; arguments as in `permute_N`."""
    return _walk_N(y_N, n, key, forward=False)


def _walk_N(x_N: np.ndarray, n: ArrayLike, key: ArrayLike, forward: bool) -> np.ndarray:
    x_N = np.asarray(x_N)
    if x_N.size == 0:
        return np.zeros(0, dtype=np.int64)
    if x_N.min() < 0 or (x_N >= n).any() or np.max(n) > LARGEST:
        raise ValueError("an element lies outside its permutation, or that has more than 2^52 elements")
    x_N, n_N = x_N.astype(_U), np.asarray(n, dtype=_U)
    key_N = np.asarray(key, dtype=_U).reshape(-1) if np.ndim(key) else np.array([key], dtype=_U)
    low_bits_N, num_high_N = _parts_N(np.atleast_1d(np.asarray(n, dtype=np.int64)))
    x_N = _network_N(x_N, low_bits_N, num_high_N, key_N, forward)
    outside = np.flatnonzero(x_N >= n_N)

    def pick(array_N: np.ndarray) -> np.ndarray:
        return array_N[outside] if array_N.size > 1 else array_N

    while outside.size:
        x_N[outside] = _network_N(x_N[outside], pick(low_bits_N), pick(num_high_N), pick(key_N), forward)
        outside = outside[x_N[outside] >= (n_N[outside] if n_N.size > 1 else n_N)]
    return x_N.astype(np.int64)


def _parts_N(n_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_parts` of every element, uint64. The exponent of a float64 is the bit length, of integers below 2^53."""
    bits_N = np.maximum(np.frexp(n_N - 1.0)[1], 2)
    low_bits_N = bits_N - bits_N // 2
    return low_bits_N.astype(_U), (-(-n_N >> low_bits_N)).astype(_U)


def _network_N(
    x_N: np.ndarray, low_bits_N: np.ndarray, num_high_N: np.ndarray, key_N: np.ndarray, forward: bool
) -> np.ndarray:  # fmt: skip
    """The eight rounds, once; uint64 in and out, the arrays broadcast against x_N."""
    high_N, low_N = x_N >> low_bits_N, x_N & ((_U(1) << low_bits_N) - _U(1))
    low_shift_N = _U(64) - low_bits_N
    for r in range(ROUNDS) if forward else range(ROUNDS - 1, -1, -1):
        value_N = ((high_N if r % 2 == 0 else low_N) ^ (key_N * _U(_ROUND_ODD[r]))) * _U(_HASH_A)
        value_N = (value_N ^ (value_N >> _U(32))) * _U(_HASH_B)
        if r % 2 == 0:
            low_N = low_N ^ (value_N >> low_shift_N)
        else:
            turn_N = (value_N >> _U(32)) * num_high_N >> _U(32)
            high_N = high_N + (turn_N if forward else num_high_N - turn_N)
            high_N = np.minimum(high_N, high_N - num_high_N)  # modulo: below zero is far above
    return (high_N << low_bits_N) | low_N
