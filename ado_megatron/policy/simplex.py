"""Keeping shares inside bounds: three operations on a point of the simplex.

Legend: K domains; p_K sums to 1, lower_K ≤ upper_K, Σ lower ≤ 1 ≤ Σ upper.
"""

import numpy as np

_FEW = 128  # kinks that are all tried at once
_NEAR = 6  # kinks on either side of the guess that are tried before the others
_LOOKS = 8  # by Newton's steps, which need two or three
_NOTHING = 1e-100  # a share this small is no share: scaling it up would overflow
_sum = np.add.reduce


def project(p_K: np.ndarray, lower_K: np.ndarray, upper_K: np.ndarray) -> np.ndarray:
    """Euclidean projection of p onto {lower ≤ q ≤ upper, Σ q = 1}.

    The minimiser of ½|q − p|² is q = clip(p + t, lower, upper) with the one t that makes the sum 1. The sum is
    piecewise linear and increasing in t, with kinks where a coordinate meets a bound: find the piece, interpolate.
    O(K) for most shares, exact. Raises ValueError when no such q exists.
    """
    p_K, lower_K, upper_K, least, _ = _checked(p_K, lower_K, upper_K)
    return _project(p_K, lower_K, upper_K, least)


def _project(p_K: np.ndarray, lower_K: np.ndarray, upper_K: np.ndarray, least: float) -> np.ndarray:
    """`project` of checked shares. least: Σ lower; where it is all there is, t lies far from 0."""
    kinks = np.concatenate([lower_K - p_K, upper_K - p_K])
    guess = 0.0 if least < 1 - 1e-9 else np.nan
    t = _root(kinks, lambda t: _sum(_clip(p_K + t, lower_K, upper_K), -1), guess)
    q_K = _clip(p_K + t, lower_K, upper_K)
    return _settle(q_K, _sum(q_K) - 1.0, lower_K, upper_K)


def project_proportional(p_K: np.ndarray, lower_K: np.ndarray, upper_K: np.ndarray) -> np.ndarray:
    """The point clip(s·p, lower, upper) with sum 1: shares inside the bounds keep their ratios.

    It is the projection in Kullback-Leibler divergence (the minimiser of Σ q log(q/p)). Where p is 0 nothing can
    be scaled: such a share sits at its lower bound. Falls back to `project` when scaling alone cannot reach sum 1.
    """
    p_K, lower_K, upper_K, least, reach = _checked(p_K, lower_K, upper_K)
    scaled = (p_K, lower_K, upper_K)
    if p_K[p_K.argmin()] <= _NOTHING:
        positive_K = p_K > _NOTHING
        p_K = np.where(positive_K, p_K, 0.0)
        reach = np.where(positive_K, upper_K, lower_K).sum()
        scaled = (p_K[positive_K], lower_K[positive_K], upper_K[positive_K])
    if reach < 1.0:
        return _project(p_K, lower_K, upper_K, least)
    kinks = np.concatenate([scaled[1] / scaled[0], scaled[2] / scaled[0]])
    if not kinks[kinks.argmax()] < np.inf:
        kinks = kinks[np.isfinite(kinks)]
    scale = _root(kinks, lambda s: _sum(_clip(s * p_K, lower_K, upper_K), -1), 1.0)
    q_K = _clip(scale * p_K, lower_K, upper_K)
    excess = _sum(q_K) - 1.0
    if abs(excess) > 1e-9:  # shares too far apart in size to be scaled together
        return _project(p_K, lower_K, upper_K, least)
    return _settle(q_K, excess, lower_K, upper_K)


def rescale_and_clip(p_K: np.ndarray, min_share: float) -> np.ndarray:
    """The clip of the released code: scale to the room left, raise to min_share, normalise.

    Normalising last takes small shares under min_share again, and K·min_share ≥ 1 makes the result uniform.
    """
    p_K = np.asarray(p_K, np.float64)
    deficit = max(min_share * p_K.size - p_K.sum(), 0.0)
    raised_K = np.maximum(p_K * ((1.0 - deficit) / p_K.sum()), min_share)
    return raised_K / raised_K.sum()


def _checked(p_K, lower_K, upper_K):
    """The three as arrays of one shape, Σ lower and Σ upper. Few reductions: at tens of domains each costs as much as
    three products, and argmin the least."""
    p_K = np.asarray(p_K, np.float64)
    lower_K, upper_K = (np.asarray(bound_K, np.float64) for bound_K in (lower_K, upper_K))
    if not lower_K.shape == upper_K.shape == p_K.shape:
        lower_K, upper_K = np.broadcast_to(lower_K, p_K.shape), np.broadcast_to(upper_K, p_K.shape)
    slack = 1e-12 * p_K.size
    if not (p_K[p_K.argmin()] >= 0 and p_K[p_K.argmax()] < np.inf):  # nor where one is NaN
        raise ValueError("shares to project must be finite and not negative")
    room_K, least, reach = upper_K - lower_K, _sum(lower_K), _sum(upper_K)
    if room_K[room_K.argmin()] < 0 or least > 1 + slack or reach < 1 - slack:
        raise ValueError("no shares within these bounds sum to 1")
    return p_K, lower_K, upper_K, least, reach


def _clip(x_K, lower_K, upper_K):
    """np.clip, without its overhead."""
    return np.minimum(np.maximum(x_K, lower_K), upper_K)


def _root(kinks, total, guess):
    """The x with total(x) = 1 for an increasing function that is linear between kinks.

    It lies between the last kink of a total below 1 and the first of one that is not. total is increasing in float64,
    too (each operation rounds monotonically), so those two are the same however they are found: few kinks are all
    tried at once, many are searched from `guess` on (nan: there is none).
    """
    if kinks.size > _FEW:
        low, high = _around(kinks, total, guess)
        if low is None or high is None:
            return (low or high)[0]
        return high[0] if high[1] == 1.0 and high[0] == kinks[kinks.argmax()] else _between(*low, *high)
    kinks.sort()
    first = max(int(kinks.searchsorted(guess)) - _NEAR, 0)
    near = kinks[first : first + 2 * _NEAR]
    total_N = total(near[:, None])
    if total_N[0] < 1.0 < total_N[-1]:
        kinks = near
    else:
        total_N = total(kinks[:, None])
    if total_N[0] >= 1.0:
        return kinks[0]
    if total_N[-1] <= 1.0:
        return kinks[-1]
    high = int(total_N.searchsorted(1.0))
    return _between(kinks[high - 1], total_N[high - 1], kinks[high], total_N[high])


def _around(kinks, total, x):
    """The last kink of a total below 1 and the first of one that is not, each with its total; None: there is none.

    Newton's steps from x on: the line between the two kinks around x says where to look next, and each look leaves
    fewer kinks. Where the line does not help, the rest is bisected.
    """
    low = high = None
    for _ in range(0 if np.isnan(x) else _LOOKS):
        under_N = kinks <= x
        below, above = kinks[under_N], kinks[~under_N]
        left = ((kink := below[below.argmax()]), total(kink)) if below.size else low
        right = ((kink := above[above.argmin()]), total(kink)) if above.size else high
        if left is not None and left[1] >= 1.0:
            high, kinks = left, below[below < left[0]]
        elif right is not None and right[1] < 1.0:
            low, kinks = right, above[above > right[0]]
        else:
            return left, right
        if left is None or right is None or left[1] == right[1]:
            break
        x = _between(*left, *right)
    kinks.sort()
    return _bisected(kinks, total, low, high)


def _bisected(kinks, total, low, high):
    """`_around` of sorted kinks that all lie between the two."""
    first, last = 0, kinks.size
    while first < last:
        middle = (first + last) // 2
        found = kinks[middle], total(kinks[middle])
        if found[1] < 1.0:
            low, first = found, middle + 1
        else:
            high, last = found, middle
    return low, high


def _between(low, below, high, above):
    return low + (high - low) * (1.0 - below) / (above - below)


def _settle(q_K, excess, lower_K, upper_K):
    """Takes the last rounding error of the sum, `excess`, from the largest share that has room for it."""
    most = q_K.argmax()
    room = q_K[most] - lower_K[most] if excess > 0 else upper_K[most] - q_K[most]
    if room < abs(excess):
        room_K = q_K - lower_K if excess > 0 else upper_K - q_K
        most = np.argmax(np.where(room_K >= abs(excess), q_K, -1.0))
    q_K[most] -= excess
    return q_K
