"""The opponent of the cup game, which no rule of apportionment wins without folding."""

from __future__ import annotations

import numpy as np


def opposing_weights(credit_C: np.ndarray, s: int, rng: np.random.Generator) -> np.ndarray:
    """The weights of row `s`, chosen when what is owed is known: all goes to the datasets that are owed most."""
    weights_C = np.full(len(credit_C), 1e-12)
    target = np.argsort(credit_C)[-max(1, len(credit_C) // (1 + s % 8)) :]
    weights_C[target] = rng.random(len(target)) + 0.1
    return weights_C / weights_C.sum()
