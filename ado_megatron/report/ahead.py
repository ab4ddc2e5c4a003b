"""What a run will have come to at its end, if the weights stay as they are.

Legend: K domains.
"""

from __future__ import annotations

import numpy as np

from ado_megatron.blend.epoch_caps import Forecast, forecast
from ado_megatron.report.data import Run
from ado_megatron.scaling_law.laws import Laws


def supply_at_end(run: Run) -> Forecast:
    """Samples and epochs of each domain at the end, and when one runs out."""
    supply = run.supply
    return forecast(run.weights_SxK[-1], supply.length_K, supply.drawn_K, supply.samples_left, supply.cap_K)


def loss_at_end_K(run: Run, supply: Forecast) -> np.ndarray:
    """What the laws in force say of the losses at the end; nan without a law. supply: that of supply_at_end."""
    laws = run.laws()
    own_K = run.counts_SxK.sum(0) + supply.drawn_C - run.supply.drawn_K
    n_K = Laws.given(laws.law_Kx3, laws.transfer_K).effective_n(own_K)
    return laws.loss(np.maximum(n_K, 1.0))
