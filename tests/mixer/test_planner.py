"""The planner: many rows in one call are those of one row a call, and any block's state is found again.

Legend: K domains, C datasets, S blocks.
"""

import json

import numpy as np
import pytest

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import caps_from_config
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.planner import Planner
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.stream.schedule import apportion

ROWS, BLOCK = 60, 128
POLICIES = {
    "static": {"policy": "static"},
    "stages": {"policy": "stages"},
    "shadow": {"policy": "ado", "shadow": True, "start_step": 10},
    "before start_step": {"profile": "released", "start_step": 45},
    "credit of policy": {"profile": "paper", "start_step": 45},
    "probe": {"policy": "ado", "start_step": 45, "probe": 10.0, "probe_length": 7},
    "plan": {"policy": "plan", "start_step": 10, "plan_gate": 0.0, "plan_kl": 0.0, "target": "uniform"},
}


def planner_of(options, num_domains, tmp_path, *, caps=False, grouped=False):
    """A planner and laws for it. caps: tight, so that they bind in the run. grouped: two datasets a domain."""
    rng = np.random.default_rng(num_domains)
    num_datasets = num_domains * (2 if grouped else 1)
    weights_C = rng.dirichlet(np.full(num_datasets, 1.0))
    options = dict(options)
    if options.get("policy") == "stages":
        options["stages"] = str(tmp_path / "stages.json")
        stages = [{"block": b, "weights": list(rng.dirichlet(np.ones(num_domains)))} for b in (0, 7, 31)]
        (tmp_path / "stages.json").write_text(json.dumps(stages))
    if grouped:
        options["groups"] = str(tmp_path / "groups.json")
        groups = {f"d{k}": [f"c{k}", f"c{k + num_domains}"] for k in range(num_domains)}
        (tmp_path / "groups.json").write_text(json.dumps(groups))
    lengths_C = rng.integers(1000, 10**6, num_datasets)
    if caps:  # supply of 1.1 to 4 times what a dataset would give at the prior, a few less than it
        options["max_epochs"] = "2"
        lengths_C = np.maximum((weights_C * ROWS * BLOCK * rng.uniform(0.4, 2.0, num_datasets)).astype(int), 1)
    config = AdoConfig(**options)
    domains = Domains.build([f"c{c}" for c in range(num_datasets)], weights_C, lengths_C, config)
    params_Kx3 = np.stack([rng.normal(1.5, 0.5, num_domains), rng.normal(0.3, 0.2, num_domains),
                           rng.uniform(0.1, 0.6, num_domains)], 1)  # fmt: skip
    planner = Planner(config, domains, BLOCK, caps_from_config(config, domains), ROWS)
    return planner, Laws.given(params_Kx3)


def row_by_row(planner, laws_S):
    """The recursion as it is defined, one `apportion` and one `step` a row: rows, states, weights."""
    policy, domains = planner.policy, planner.domains
    state, credit_C = policy.initial_state(), np.zeros(len(domains.prefixes_C))
    taken_C, counts_K, rows, states = np.zeros(len(credit_C), dtype=np.int64), None, [], []
    for laws in laws_S:
        if counts_K is not None:
            state = policy.step(state, laws, counts_K)
        states.append(state)
        in_force_K = domains.prior_K if planner.config.shadow else state.weights_K
        left_C = None if planner.caps_C is None else planner.caps_C - taken_C
        counts_C, credit_C = apportion(domains.weights_C(in_force_K), BLOCK, credit_C, left_C, domains.domain_of_C)
        taken_C = taken_C + counts_C
        counts_K = domains.by_domain(counts_C)
        rows.append(counts_C)
    return np.array(rows), states


def assert_same_state(got, expected):
    for name, value in expected.to_arrays().items():
        assert (got.to_arrays()[name] == value).all(), name


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("num_domains", "caps", "grouped"), [(3, False, False), (22, True, False), (12, True, True), (200, False, False)]
)
def test_rows_states_and_weights_are_those_of_one_row_at_a_time(tmp_path, name, num_domains, caps, grouped):
    planner, laws = planner_of(POLICIES[name], num_domains, tmp_path, caps=caps, grouped=grouped)
    other, _ = planner_of(POLICIES[name], num_domains, tmp_path, caps=caps, grouped=grouped)
    rows_SxC, states = row_by_row(other, [None] * 25 + [laws] * (ROWS - 25))
    first_SxC = planner.plan(25)
    planner.laws = laws
    got_SxC = np.concatenate([first_SxC, planner.plan(20), planner.plan(ROWS - 45)])
    assert (got_SxC == rows_SxC).all()
    if caps:
        assert (rows_SxC.sum(axis=0) == planner.caps_C).any()  # else caps were not tested
    for block, state in enumerate(states):
        assert (planner.shadow_K(block) == state.weights_K).all()
        in_force_K = planner.domains.prior_K if planner.config.shadow else state.weights_K
        assert (planner.weights_K(block) == in_force_K).all()
        found = planner._settled(planner._point(block))
        assert_same_state(found.state, state)
        assert (found.laid_out_C == rows_SxC[:block].sum(axis=0)).all()


def test_what_the_plan_has_to_say_is_told_once_with_its_block(tmp_path):
    planner, laws = planner_of(POLICIES["plan"], 3, tmp_path)
    planner.plan(25)
    assert planner.take_notes() == []
    planner.laws = laws
    planner.plan(20)
    (note,) = planner.take_notes()
    assert note.startswith("from block 25 on, plan: ") and planner.take_notes() == []


def test_what_is_forgotten_has_the_prior_as_its_weights(tmp_path):
    planner, _ = planner_of(POLICIES["stages"], 3, tmp_path)
    planner.plan(40)
    known_K = planner.weights_K(10)
    planner.forget_before(10)
    assert (planner.weights_K(10) == known_K).all() and (known_K != planner.domains.prior_K).any()
    assert (planner.weights_K(9) == planner.domains.prior_K).all()
