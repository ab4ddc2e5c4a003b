"""What a saved state means to a run that is not the same: of other datasets, of another policy, at another block.

Legend: K domains, C datasets, S rows.
"""

import json

import numpy as np
import pytest

from ado_megatron.blend.domains import Domains
from ado_megatron.errors import SidecarError
from ado_megatron.mixer.resume import Saved, pack
from ado_megatron.policy.probe import probe_signs, probed
from ado_megatron.stream.apportion import apportion
from ado_megatron.stream.permutation import permute
from ado_megatron.stream.schedule import Schedule
from tests.kit.planning import planner_of, some_laws

BLOCK, DOMAINS = 64, 3
STAGES = {0: [1, 1, 2], 7: [3, 1, 1], 31: [1, 6, 1]}
POLICIES = {
    "static": {"policy": "static"},
    "measure": {"policy": "measure"},
    "stages": {"policy": "stages"},
    "ado": {"policy": "ado", "start_step": 10},
    "ado, starts late": {"policy": "ado", "start_step": 50},
    "probe": {"policy": "ado", "start_step": 10, "probe": 10.0, "probe_length": 4},
    "plan": {"policy": "plan", "start_step": 10, "plan_gate": 0.0, "target": "uniform"},
}


@pytest.fixture
def make(tmp_path):
    """A planner of one of POLICIES; all may be resumed from one another."""
    path = tmp_path / "stages.json"
    path.write_text(json.dumps([{"block": block, "weights": weights} for block, weights in STAGES.items()]))

    def planner(name):
        options = POLICIES[name] | ({"stages": str(path)} if name == "stages" else {})
        return planner_of(tmp_path, domains=DOMAINS, block=BLOCK, accept_changes=True, **options)

    return planner


def stage_K(block):
    weights_K = np.array(STAGES[max(first for first in STAGES if first <= block)], dtype=np.float64)
    return weights_K / weights_K.sum()


def driven(planner):
    """40 rows, with laws from block 20 on."""
    planner.plan(20)
    planner.laws = some_laws(DOMAINS, 1, 0.0)
    planner.plan(20)
    return planner


def saved_at(block, planner, to):
    """The checkpoint of `planner` after `block` blocks, as the run of `to` reads it."""
    schedule = Schedule(planner.domains.lengths_C, BLOCK, 100, planner.config.seed)
    meta = {"step": block, "consumed_samples": block * BLOCK, "block_size": BLOCK, "next_cut": 0, "origin": None}
    meta, arrays = pack(
        meta, config=planner.config, domains=planner.domains, schedule=schedule.state_dict(0),
        planner=planner.to_arrays(block), history={}, alarms={}, pending=[],
    )  # fmt: skip
    return Saved(json.loads(json.dumps(meta)), arrays, "s.ado", config=to.config, domains=to.domains, block_size=BLOCK)


def one_by_one(planner, num_rows):
    """The rows to come, by one `step` and one `apportion` a row."""
    at, rows = planner._at, []
    state, credit_C, counts_K = at.state, at.credit_C, at.last_K
    for _ in range(num_rows):
        if counts_K is not None:
            state = planner.policy.step(state, planner.laws, counts_K)
        counts_C, credit_C = apportion(planner.domains.weights_C(state.weights_K), BLOCK, credit_C)
        counts_K = planner.domains.by_domain(counts_C)
        rows.append(counts_C)
    return np.array(rows)


@pytest.mark.parametrize("block", [0, 13, 31])
@pytest.mark.parametrize("after", POLICIES)
@pytest.mark.parametrize("before", POLICIES)
def test_a_state_of_another_policy_goes_on_as_one_row_at_a_time_would(make, before, after, block):
    saved = saved_at(block, driven(make(before)), make(after))
    planner, other = make(after), make(after)
    planner.restore(saved)
    other.restore(saved)
    rows_SxC = one_by_one(other, 30) if before != after else None
    got_SxC = np.concatenate([planner.plan(20), planner.plan(10)])
    if before == after:  # the same run: its rows are kept, and these come after them
        assert planner.next_block == 70
        return
    assert planner.next_block == block + 30 and (got_SxC == rows_SxC).all()
    for s in range(30):
        if after in ("static", "measure"):
            np.testing.assert_allclose(planner.weights_K(block + s), planner.domains.prior_K, rtol=1e-15)
        if after == "stages":
            np.testing.assert_allclose(planner.weights_K(block + s), stage_K(block + s), rtol=1e-15)
        if after == "ado, starts late" and block + s <= 50:
            np.testing.assert_allclose(planner.weights_K(block + s), planner.domains.prior_K, rtol=1e-15)


@pytest.mark.parametrize("after", sorted(POLICIES.keys() - {"stages"}))
def test_before_the_first_sample_a_state_of_another_policy_means_nothing(make, after):
    """Saved at block 0 under stages that do not begin at the prior."""
    before, planner, new = make("stages"), make(after), make(after)
    before.plan(5)
    planner.restore(saved_at(0, before, planner))
    assert (planner.plan(40) == new.plan(40)).all()


def test_a_run_that_begins_inside_declared_stages_begins_with_the_stage_of_its_block(make):
    planner = make("stages")
    planner.begin_at(33, np.array([700, 700, 712]))
    rows_SxC = planner.plan(4)
    np.testing.assert_allclose(planner.weights_K(33), stage_K(33), rtol=1e-15)
    assert (np.abs(rows_SxC - BLOCK * stage_K(33)) <= 1).all()


def test_a_run_that_begins_inside_a_probe_begins_with_the_signs_of_its_block(make):
    planner = make("probe")
    planner.begin_at(5, np.array([100, 100, 120]))
    planner.plan(1)
    prior_K = planner.domains.prior_K
    wanted_K = probed(prior_K, probe_signs(5, DOMAINS, 4, planner.config.seed), 0.1)
    assert (wanted_K != prior_K).any() and (wanted_K != make("probe").state.weights_K).any()
    np.testing.assert_allclose(planner.weights_K(5), wanted_K, rtol=1e-15)


def test_without_its_probe_a_run_goes_on_from_the_weights_that_were_probed(make):
    """The probe moves weights for a while; what the policy makes of the laws does not depend on them."""
    probe, plain = driven(make("probe")), make("ado")
    plain.restore(saved_at(30, probe, plain))
    plain.plan(1)
    np.testing.assert_allclose(plain.weights_K(30), probe._settled(probe._point(30)).state.base_K, rtol=1e-12)
    assert (plain.weights_K(30) != probe.weights_K(30)).any()


# ---------------------------------------------------------------- other datasets


def other_data(tmp_path, consumed, prefixes, lengths):
    """(state of the schedule, domains) of a run of p70 (3 samples) and p80 (5) that goes on with `prefixes`."""
    config = planner_of(tmp_path, domains=DOMAINS, accept_changes=True).config
    old = Domains.build(["p70", "p80"], [1, 1], [3, 5], config)
    new = Domains.build(prefixes, [1] * len(prefixes), lengths, config)
    schedule = Schedule([3, 5], 4, 4, config.seed, stream_id_C=old.stream_id_C)
    schedule.publish(0, [[2, 2], [1, 3]])
    meta, arrays = pack(
        {"step": 1, "consumed_samples": consumed, "block_size": 4, "next_cut": 0, "origin": None}, config=config,
        domains=old, schedule=schedule.state_dict(consumed), planner={}, history={}, alarms={}, pending=[],
    )  # fmt: skip
    return Saved(meta, arrays, "s.ado", config=config, domains=new, block_size=4), schedule


def test_datasets_may_be_reordered_and_added_and_keep_their_place(tmp_path):
    saved, old = other_data(tmp_path, 8, ["p90", "p80", "p70"], [9, 5, 3])
    new = Schedule([9, 5, 3], 4, 4, old.seed, stream_id_C=saved.stream_id_C())
    new.load_state_dict(saved.schedule_state())
    new.publish(2, [[1, 2, 1]])
    reads = {new.read(i)[0]: new.read(i) for i in range(8, 12)}
    assert new.cumulative(8).tolist() == [0, 5, 3]
    assert reads[2][1:3] == (1, 0) and reads[2][3] == permute(0, 3, old.epoch_key(0, 1))
    assert reads[0][1:3] == (0, 0)


def test_inside_a_block_its_rest_is_drawn_as_planned_and_none_of_its_datasets_may_go_or_move(tmp_path):
    saved, old = other_data(tmp_path, 5, ["p90", "p70", "p80"], [9, 3, 5])
    new = Schedule([9, 3, 5], 4, 4, old.seed, stream_id_C=saved.stream_id_C())
    new.load_state_dict(saved.schedule_state())
    assert new.planned == 2 and new.row(1).tolist() == [0, 1, 3]
    assert [new.read(i)[1:] for i in range(5, 8)] == [old.read(i)[1:] for i in range(5, 8)]
    for prefixes, lengths, what in ((["p70"], [3], "removed"), (["p80", "p70"], [5, 3], "put in another order")):
        saved, _ = other_data(tmp_path, 5, prefixes, lengths)
        with pytest.raises(SidecarError, match=f"datasets of the blend were {what}, but the checkpoint stands inside"):
            saved.schedule_state()
    saved, old = other_data(tmp_path, 8, ["p70"], [3])
    new = Schedule([3], 4, 4, old.seed, stream_id_C=saved.stream_id_C())
    new.load_state_dict(saved.schedule_state())
    assert (new.planned, new.cumulative(8).tolist()) == (2, [3])
