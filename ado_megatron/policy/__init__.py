"""Laws in, weights out."""

from __future__ import annotations

from ado_megatron.policy.ado import AdoPolicy
from ado_megatron.policy.fixed import StagesPolicy, StaticPolicy, read_stages
from ado_megatron.policy.options import PolicyOptions
from ado_megatron.policy.state import PolicyState

__all__ = ["AdoPolicy", "PolicyState", "StagesPolicy", "StaticPolicy", "make_policy"]


def make_policy(config: PolicyOptions, prior_K, names_K=None):
    """The policy that the config names. `names_K` (domain names) is needed for stages that name their domains."""
    if config.policy == "static" or config.shadow:
        return StaticPolicy(prior_K)
    if config.policy == "stages":
        return StagesPolicy(read_stages(config.stages, len(prior_K), names_K), prior_K)
    return AdoPolicy(config, prior_K)
