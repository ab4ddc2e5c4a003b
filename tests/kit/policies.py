"""Three laws, a prior, a walk of a policy over given counts, and an installed package with policies of its own."""

import dataclasses
import sys

import numpy as np

from ado_megatron.policy import make_policy
from ado_megatron.scaling_law.laws import Laws

NAMES = ("a", "b", "c")
PRIOR = np.array([0.5, 0.3, 0.2])
OWN = '''
import dataclasses
import numpy as np
from ado_megatron.policy.state import state_at

class Mine:
    """Fixed weights; counts its steps in `extra`."""
    fails_at = np.inf
    def __init__(self, config, context):
        self.context = context
    def initial_state(self):
        return state_at(self.context.prior_K, self.context.prior_K)
    def step(self, state, laws, counts_K):
        if state.step >= self.fails_at:
            raise RuntimeError("no idea")
        seen = int(state.extra.get("seen", 0)) + 1
        state = dataclasses.replace(state.after(counts_K), extra={"seen": np.int64(seen)})
        return state.at_weights(np.array([0.2, 0.2, 0.6]))

class Failing(Mine):
    fails_at = 20
'''
PARAMS = [[2.0, 0.5, 0.3], [1.0, 0.2, 0.5], [3.0, 0.7, 0.2]]  # log β, log ε, α
LAWS = Laws.given(PARAMS)
SHARED_LAWS = Laws.given(PARAMS, np.inf)  # in the samples of all domains


def walk(policy, counts_TxK, laws=LAWS, state=None):
    """(weights in force after each row, the last state) of a policy over rows of counts."""
    state, rows = state or policy.initial_state(), []
    for counts_K in counts_TxK:
        state = policy.step(state, laws, counts_K)
        rows.append(state.weights_K)
    return np.array(rows), state


def run(config, counts_TxK, laws=LAWS, prior=PRIOR):
    """The same of the policy that `config` names."""
    config = dataclasses.replace(config, policy=config.policy or "ado")
    return walk(make_policy(config, prior), counts_TxK, laws)


def is_distribution(weights_K) -> bool:
    """Finite, not negative, sum 1."""
    weights_K = np.asarray(weights_K)
    return bool(np.isfinite(weights_K).all() and (weights_K >= 0).all() and abs(weights_K.sum() - 1) < 1e-9)


def install_policies(directory, monkeypatch, source, **entries) -> None:
    """Make a package of one module, own_policies.py, importable, and its entry points (name=object) known."""
    (directory / "own_policies.py").write_text(source)
    info = directory / "own_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-policies\nVersion: 1.0\n")
    lines = [f"{name} = {value if ':' in value else f'own_policies:{value}'}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[ado_megatron.policies]", *lines, ""]))
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.delitem(sys.modules, "own_policies", raising=False)
