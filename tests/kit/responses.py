"""Losses of domains with a known law and transfer under a moving mixture and a learning-rate schedule.

Legend: K domains, T steps.

LAWS_Kx3 (log β, log ε, α) and TRANSFER_K are rounded from fits to the 305M-parameter runs of Ye et al. (arXiv
2403.16952) on five groups of domains of the Pile; PRIOR_K are these groups' natural shares.
"""

import numpy as np

LAWS_Kx3 = np.array(
    [[3.26, 0.49, 0.39], [3.55, 0.96, 0.43], [3.63, 0.84, 0.53], [3.20, -0.07, 0.46], [3.50, 0.84, 0.39]]
)
TRANSFER_K = np.array([0.25, 1.5, 0.19, 0.15, 0.5])
PRIOR_K = np.array([0.34, 0.15, 0.05, 0.12, 0.34])


def rates(schedule, steps):
    """The learning rate over the run, 1 at its start and a tenth at its end."""
    t = (np.arange(steps) + 0.5) / steps
    return {"constant": np.ones(steps), "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * t)), "linear": 1 - 0.9 * t,
            "wsd": np.minimum(1.0, (1 - t) / 0.2 * 0.9 + 0.1)}[schedule]


def mixture(steps, seed, moves=True):
    """Shares that stay at the prior for a tenth of the run, then take a random step of log share ten times."""
    rng = np.random.default_rng(seed + 100)
    share_TxK, log_share = np.tile(PRIOR_K / PRIOR_K.sum(), (steps, 1)), np.log(PRIOR_K)
    for first in range(steps // 10, steps, steps // 10) if moves else ():
        log_share = log_share + 0.3 * rng.standard_normal(PRIOR_K.size)
        share = np.maximum(np.exp(log_share) / np.exp(log_share).sum(), 0.01)
        share_TxK[first:] = share / share.sum()
    return share_TxK


def losses(share_TxK, schedule, seed, noise=0.004, drop=0.06, unlike=0.3, form="nats"):
    """Own samples (512 a step) and observed losses, n_TxK and loss_TxK.

    drop: nats that the schedule takes off by its end (form "nats"), or twice that as a share of the reducible loss
    ("reducible"), times a gain of each domain, exp(unlike·z). noise: of the mean loss of a step at an equal share.
    """
    rng = np.random.default_rng(seed)
    n_TxK = 512.0 * np.cumsum(share_TxK, 0)
    log_beta_K = LAWS_Kx3[:, 0] + LAWS_Kx3[:, 2] * np.log(512.0)  # the fits count steps
    floor_K = np.exp(LAWS_Kx3[:, 1])
    effective_TxK = n_TxK + TRANSFER_K * n_TxK.sum(1, keepdims=True)
    reducible_TxK = np.exp(log_beta_K - LAWS_Kx3[:, 2] * np.log(effective_TxK))
    gone_TxK = drop * np.exp(unlike * rng.standard_normal(PRIOR_K.size)) * (1 - rates(schedule, len(n_TxK)))[:, None]
    if form == "nats":
        loss_TxK = floor_K + reducible_TxK - gone_TxK
    else:
        loss_TxK = floor_K + reducible_TxK * np.exp(-2 * gone_TxK)
    spread_TxK = noise / np.sqrt(PRIOR_K.size * share_TxK)
    return n_TxK, loss_TxK * np.exp(spread_TxK * rng.standard_normal(loss_TxK.shape))
