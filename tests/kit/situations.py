"""Simulated runs in the middle of their way, as `ado-megatron whatif` sees a run.

Legend: K domains, M losses (= K).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ado_megatron.simulate import PowerResponse
from ado_megatron.simulate.simulation import SimulatedRun
from ado_megatron.whatif.situation import Situation


def random_response(rng: np.random.Generator, num: int) -> PowerResponse:
    """Laws of all kinds; how much the samples of others count differs from pair to pair."""
    gamma = np.exp(rng.normal(np.log(0.1), 1.0, (num, num)))
    gamma[np.arange(num), np.arange(num)] = 1.1
    log_beta, log_epsilon = rng.uniform(2.5, 3.5, num), np.log(rng.uniform(0.8, 2.5, num))
    return PowerResponse(log_beta, log_epsilon, rng.uniform(0.2, 0.5, num), gamma)


def situation_of(run: SimulatedRun, num_blocks: int) -> Situation:
    """Where a simulated run stands."""
    planner = run.planner
    return Situation(
        path=Path("simulated"), step=run.done, config=run.config, domains=run.domains, block_size=planner.block_size,
        num_blocks=num_blocks, caps_C=planner.caps_C, target_K=run.target_K, point=planner.hand_over(),
        rows=run.history.snapshot(run.done),
    )  # fmt: skip
