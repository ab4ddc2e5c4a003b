"""Losses in, laws out.

`LossHistory` takes the losses of each step; its snapshot becomes points, the points become `Laws`: for every domain the
parameters of L(n) = ε + β n^(−α), where n are the domain's own samples and s times those of all domains, with their
errors and a verdict. Numbers in, numbers out: nothing here knows of Megatron, of files of a run, or of other ranks.

    laws = fit_laws(n_T, loss_TxK, LawOptions())
    laws.speed(laws.effective_n(samples_K))        # nats per sample of each domain
"""

from ado_megatron.scaling_law.fit import fit_laws
from ado_megatron.scaling_law.history import LossHistory
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.scaling_law.options import LawOptions

__all__ = ["LawOptions", "Laws", "LossHistory", "fit_laws"]
