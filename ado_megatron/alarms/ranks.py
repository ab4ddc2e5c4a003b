"""Whether data ranks have trained on the same amount, and each on its part of every domain.

Legend: W ranks, K domains, N = 1 + K, or 2.
"""

from __future__ import annotations

import numpy as np

MORE = 0.03  # of the tokens of a rank
PART, SIGMAS = 0.1, 6.0  # of a domain's samples on a rank: what is not chance


def uneven_ranks(ranks_WxN: np.ndarray) -> dict[int, float]:
    """rank → how many tokens more (or fewer) it measured than the median rank, as a part of that.

    ranks_WxN: of each rank, how often it took part in a sum, and then its tokens by domain, or all of them."""
    counts_W, tokens_W = ranks_WxN[:, 0] > 0, ranks_WxN[:, 1:].sum(1)
    if counts_W.sum() < 2:
        return {}
    median = float(np.median(tokens_W[counts_W]))
    more_W = tokens_W / median - 1.0 if median > 0 else np.zeros(len(tokens_W))
    return {int(w): float(more_W[w]) for w in np.flatnonzero(counts_W & (np.abs(more_W) > MORE))}


def uneven_domains(ranks_WxN: np.ndarray, per_sample_K: np.ndarray) -> dict[tuple[int, int], tuple[float, float]]:
    """(domain, rank) → samples of the domain that the rank measured, and that are its part.

    A block is shuffled before it is dealt out, so what a rank gets of a domain is close to what all got on average.
    Nothing where tokens are not known by domain. per_sample_K: tokens of a sample, nan where not known.
    """
    num = len(per_sample_K)
    if ranks_WxN.shape[1] != 1 + num or (ranks_WxN[:, 0] > 0).sum() < 2 or num < 2:
        return {}
    return _apart(ranks_WxN[:, 1:] / np.where(per_sample_K > 0, per_sample_K, np.inf))


def _apart(samples_WxK: np.ndarray) -> dict[tuple[int, int], tuple[float, float]]:
    total = samples_WxK.sum()
    if not total > 0:
        return {}
    share_K = samples_WxK.sum(0) / total
    part_WxK = samples_WxK.sum(1)[:, None] * share_K
    off_WxK, error_WxK = samples_WxK - part_WxK, np.sqrt(part_WxK * (1 - share_K) + 1.0)
    bad_WxK = (np.abs(off_WxK) > SIGMAS * error_WxK) & (np.abs(off_WxK) > PART * part_WxK)
    return {(int(k), int(w)): (float(samples_WxK[w, k]), float(part_WxK[w, k])) for w, k in np.argwhere(bad_WxK)}
