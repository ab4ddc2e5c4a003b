"""Points with a known law, objectives of one domain, and histories, for the tests of the laws.

Legend: K domains, T points or steps.
"""

import numpy as np

from ado_megatron.scaling_law.history import LossHistory
from ado_megatron.scaling_law.objective import Problem

N_T = 256.0 * (1000 + 10 * np.arange(300))


def clean(log_beta, log_epsilon, alpha, n_T=N_T):
    return (np.exp(log_epsilon) + np.exp(log_beta) * n_T**-alpha)[:, None]


def one_problem(x_T, y_T, **bounds):
    lower = np.array([[-np.inf, bounds.get("e_low", 0.5), 0.001]])
    return Problem(x_T[None], y_T[None], np.ones((1, x_T.size)), lower, np.array([[6.5, np.inf, 0.8]]), 1e-3, 1.0)


def appended(config, counts_TxK, loss_TxK, history=None, first=0):
    counts_TxK = np.asarray(counts_TxK)
    history = history or LossHistory(counts_TxK.shape[1], config)
    n_TxK = np.cumsum(counts_TxK, 0)
    for t in range(first, len(counts_TxK)):
        tokens_K = np.where(np.isnan(loss_TxK[t]), 0, counts_TxK[t]) * 10.0
        loss_K = np.where(np.isnan(loss_TxK[t]), 0.0, loss_TxK[t])
        history.append(t, n_TxK[t], counts_TxK[t], loss_K * tokens_K, tokens_K)
    return history
