"""The domains of a run, made from its checked data. No torch: the launcher's parent uses it too.

Legend: C datasets (one per prefix).
"""

from __future__ import annotations

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import caps_from_config, check_supply
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.trainer.check_data import DataSpec
from ado_megatron.trainer.options import TrainerOptions
from ado_megatron.trainer.step_plan import StepPlan


def make_domains(data: DataSpec, options: TrainerOptions, config: AdoConfig) -> Domains:
    """Domains of the train prefixes; prefixes without weights count by their size, as in Megatron. Raises UserError."""
    lengths_C = [prefix.samples(options.seq_length) for prefix in data.train_C]
    documents_C = [prefix.documents for prefix in data.train_C]
    content_C = [prefix.content for prefix in data.train_C]
    paths_C = [prefix.path for prefix in data.train_C]
    return Domains.build(paths_C, data.weights_C, lengths_C, config, documents_C, content_C)


def check_mixture(data: DataSpec, options: TrainerOptions, config: AdoConfig) -> None:
    """Groups, caps and supply, and what a batch ramp forbids. Raises UserError, with the numbers when the run cannot
    be fed."""
    if options.rampup_batch_size is not None and config.fit_lag == 0:
        raise UserError(
            "--ado-fit-lag 0 needs steps of whole blocks, which a batch ramp does not have; give 1 or more, or "
            "leave it out"
        )
    domains = make_domains(data, options, config)
    caps_C = caps_from_config(config, domains)
    if caps_C is not None and not config.off and not options.resume:  # the mixer knows what a resumed run has drawn
        blocks = -(-StepPlan(options).total_samples // options.global_batch)
        check_supply(domains, caps_C, [(domains.prior_K, blocks * options.global_batch)])
