"""Laws in, weights out.

What comes in: the laws in force, the samples that each block gave, the facts of the run (PolicyContext) and the
options. What goes out: the weights of the next block, in a state that a checkpoint can hold. A policy is a pure
function of these, so whoever knows state and laws knows the weights of every block up to the next refit:

    policy = make_policy(config, PolicyContext(prior_K, names_K=("code", "web"), block_size=256, num_blocks=10_000))
    state = policy.initial_state()
    state = policy.step(state, laws, counts_K)      # after each block; state.weights_K are those of the next
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.policy.context import PolicyContext, as_context
from ado_megatron.policy.guarded import GuardedPolicy
from ado_megatron.policy.options import PolicyOptions
from ado_megatron.policy.probe import ProbedPolicy
from ado_megatron.policy.registry import BUILT_IN, WITHOUT_LAWS, policy_factory
from ado_megatron.policy.state import PolicyState
from ado_megatron.policy.target import resolve_target
from ado_megatron.scaling_law.laws import Laws

__all__ = ["Policy", "PolicyContext", "PolicyOptions", "PolicyState", "make_policy", "resolve_target"]


class Policy(Protocol):
    """What a policy must offer. It is made by calling the registered name with (PolicyOptions, PolicyContext)."""

    def initial_state(self) -> PolicyState:
        """The state before the first block, with the weights of block 0."""

    def step(self, state: PolicyState, laws: Laws | None, counts_K: ArrayLike) -> PolicyState:
        """The state after one more block, laid out with `counts_K` samples. laws: in force after it; None: none yet."""

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """What is known of the weights of the blocks first … stop − 1: (weights_K, number of blocks), in order."""

    def constant_until(self, state: PolicyState, laws: Laws | None, stop: int) -> int:
        """The first block ≤ stop whose weights may differ from those of block state.step, while `laws` stay.

        A policy may also have `step_constant(state, laws, counts_SxK)`: the same as `step` over several blocks before
        that one, at once. One whose weights depend on the number of the block may have `at_block(state)`: the state
        with the weights of block state.step, for a run that begins there.
        """


def make_policy(config: PolicyOptions, context: PolicyContext | ArrayLike) -> Any:
    """The policy that the options name, with its target and its probe.

    context: or a prior alone, where nothing else of the run is known. Raises UserError for a name that is no policy, a
    target that does not fit the domains, stages that do not, or a class of the user's own that cannot be made.
    """
    context = as_context(context)
    if context.target_K is None:
        target_K = resolve_target(config.target, context.names_K, context.prior_K, context.natural_K)
        context = dataclasses.replace(context, target_K=target_K)
    name = "static" if config.shadow else config.value("policy")
    factory = policy_factory(name)
    policy = factory(config, context) if name in BUILT_IN else GuardedPolicy.make(factory, name, config, context)
    if config.probe > 0 and name not in WITHOUT_LAWS:
        policy = ProbedPolicy(policy, config.probe / 100.0, config.probe_length, context.seed)
    return policy
