"""Keeping shares inside bounds: three operations on a point of the simplex.

Legend: K domains; p_K sums to 1, lower_K ≤ upper_K, Σ lower ≤ 1 ≤ Σ upper.
"""

import numpy as np

_FEW = 128  # kinks that are all tried at once
_NOTHING = 1e-100  # a share this small is no share: scaling it up would overflow


def project(p_K: np.ndarray, lower_K: np.ndarray, upper_K: np.ndarray) -> np.ndarray:
    """Euclidean projection of p onto {lower ≤ q ≤ upper, Σ q = 1}.

    The minimiser of ½|q − p|² is q = clip(p + t, lower, upper) with the one t that makes the sum 1. The sum is
    piecewise linear and increasing in t, with kinks where a coordinate meets a bound: sort the kinks, find the
    piece, interpolate. O(K log K), exact. Raises ValueError when no such q exists.
    """
    p_K, lower_K, upper_K = _checked(p_K, lower_K, upper_K)
    t = _root(np.concatenate([lower_K - p_K, upper_K - p_K]), lambda t: _clip(p_K + t, lower_K, upper_K).sum(-1), 0.0)
    return _settle(_clip(p_K + t, lower_K, upper_K), lower_K, upper_K)


def project_proportional(p_K: np.ndarray, lower_K: np.ndarray, upper_K: np.ndarray) -> np.ndarray:
    """The point clip(s·p, lower, upper) with sum 1: shares inside the bounds keep their ratios.

    It is the projection in Kullback-Leibler divergence (the minimiser of Σ q log(q/p)). Where p is 0 nothing can
    be scaled: such a share sits at its lower bound. Falls back to `project` when scaling alone cannot reach sum 1.
    """
    p_K, lower_K, upper_K = _checked(p_K, lower_K, upper_K)
    positive_K = p_K > _NOTHING
    reach, scaled = upper_K.sum(), (p_K, lower_K, upper_K)
    if not positive_K.all():
        p_K = np.where(positive_K, p_K, 0.0)
        reach = np.where(positive_K, upper_K, lower_K).sum()
        scaled = (p_K[positive_K], lower_K[positive_K], upper_K[positive_K])
    if reach < 1.0:
        return project(p_K, lower_K, upper_K)
    with np.errstate(over="ignore"):
        kinks = np.concatenate([scaled[1] / scaled[0], scaled[2] / scaled[0]])
    kinks = kinks[np.isfinite(kinks)]
    scale = _root(kinks, lambda s: _clip(s * p_K, lower_K, upper_K).sum(-1), 1.0)
    q_K = _clip(scale * p_K, lower_K, upper_K)
    if abs(q_K.sum() - 1.0) > 1e-9:  # shares too far apart in size to be scaled together
        return project(p_K, lower_K, upper_K)
    return _settle(q_K, lower_K, upper_K)


def rescale_and_clip(p_K: np.ndarray, min_share: float) -> np.ndarray:
    """The clip of the released code: scale to the room left, raise to min_share, normalise.

    Normalising last takes small shares under min_share again, and K·min_share ≥ 1 makes the result uniform.
    """
    p_K = np.asarray(p_K, np.float64)
    deficit = max(min_share * p_K.size - p_K.sum(), 0.0)
    raised_K = np.maximum(p_K * ((1.0 - deficit) / p_K.sum()), min_share)
    return raised_K / raised_K.sum()


def _checked(p_K, lower_K, upper_K):
    p_K = np.asarray(p_K, np.float64)
    lower_K, upper_K = (np.asarray(bound_K, np.float64) for bound_K in (lower_K, upper_K))
    if not lower_K.shape == upper_K.shape == p_K.shape:
        lower_K, upper_K = np.broadcast_to(lower_K, p_K.shape), np.broadcast_to(upper_K, p_K.shape)
    slack = 1e-12 * p_K.size
    if not np.isfinite(p_K).all() or (p_K < 0).any():
        raise ValueError("shares to project must be finite and not negative")
    if (lower_K > upper_K).any() or lower_K.sum() > 1 + slack or upper_K.sum() < 1 - slack:
        raise ValueError("no shares within these bounds sum to 1")
    return p_K, lower_K, upper_K


def _clip(x_K, lower_K, upper_K):
    """np.clip, without its overhead."""
    return np.minimum(np.maximum(x_K, lower_K), upper_K)


def _root(kinks, total, guess):
    """The x with total(x) = 1 for an increasing function that is linear between kinks.

    It lies between the last kink of a total below 1 and the first of one that is not. total is increasing in float64,
    too (each operation rounds monotonically), so those two are the same however they are found: few kinks are all
    tried at once, many are searched from `guess` outwards and then bisected.
    """
    kinks = np.sort(kinks)
    if kinks.size <= _FEW:
        total_N = total(kinks[:, None])
        if total_N[0] >= 1.0:
            return kinks[0]
        if total_N[-1] <= 1.0:
            return kinks[-1]
        high = int(np.searchsorted(total_N, 1.0))
        return _between(kinks[high - 1], kinks[high], total_N[high - 1], total_N[high])
    last = kinks.size - 1
    if total(kinks[0]) >= 1.0:
        return kinks[0]
    if total(kinks[last]) <= 1.0:
        return kinks[last]
    low = high = min(max(int(np.searchsorted(kinks, guess)), 1), last)
    reach = 1
    while total(kinks[high]) < 1.0:
        low, high, reach = high, min(high + reach, last), 2 * reach
    while low == high or total(kinks[low]) >= 1.0:
        low, high, reach = max(low - reach, 0), low, 2 * reach
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(kinks[middle]) < 1.0 else (low, middle)
    return _between(kinks[low], kinks[high], total(kinks[low]), total(kinks[high]))


def _between(low, high, below, above):
    return low + (high - low) * (1.0 - below) / (above - below)


def _settle(q_K, lower_K, upper_K):
    """Takes the last rounding error of the sum from the largest share that has room for it."""
    excess = q_K.sum() - 1.0
    room_K = q_K - lower_K if excess > 0 else upper_K - q_K
    q_K[np.argmax(np.where(room_K >= abs(excess), q_K, -1.0))] -= excess
    return q_K
