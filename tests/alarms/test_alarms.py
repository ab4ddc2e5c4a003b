"""Alarms in simulated runs, clean and not, and by hand.

Legend: K domains, T rows of a history.
"""

import dataclasses

import numpy as np
import pytest

from ado_megatron.alarms import Alarms, Refit
from ado_megatron.alarms.losses import Window
from ado_megatron.alarms.memory import Memory
from ado_megatron.alarms.supply import Supply
from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law import Laws
from ado_megatron.simulate import PowerResponse, simulate

CONFIG = AdoConfig(policy="ado", refit_interval=100, start_step=100, ignore_steps=20, stride=5)
PRIOR_K = np.array([0.5, 0.3, 0.2])


def random_response(rng, num):
    """Laws of all kinds; how much the samples of others count differs from pair to pair."""
    gamma = np.exp(rng.normal(np.log(0.1), 1.0, (num, num)))
    gamma[np.arange(num), np.arange(num)] = 1.1
    log_beta, log_epsilon = rng.uniform(2.5, 3.5, num), np.log(rng.uniform(0.8, 2.5, num))
    return PowerResponse(log_beta, log_epsilon, rng.uniform(0.2, 0.5, num), gamma)


def clean_run(seed, most, steps, **options):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(3, most))
    prior_K = rng.dirichlet(np.ones(num)) + 0.003
    config = dataclasses.replace(CONFIG, **options)
    response = random_response(rng, num)
    return simulate(response, prior_K, config=config, steps=steps, block_size=256, noise=0.02, seed=seed)


def test_twenty_clean_runs_raise_at_most_one_alarm():
    assert sum(len(clean_run(seed, 6, 300, refit_interval=50).alarms) for seed in range(20)) <= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_clean_runs_of_all_profiles_raise_at_most_one_alarm():
    found = []
    for seed in range(20):
        plan = {"policy": "plan", "transfer": "estimate"} if seed % 2 else {}
        profile = ("ado", "released", "paper", "ado")[seed % 4]
        found += clean_run(seed, 12, 1200, profile=profile, **plan).alarms
    assert len(found) <= 1


def run_of(change, **options):
    """A run whose true losses go through `change` (losses, own samples) on the way."""
    response = random_response(np.random.default_rng(3), 3)
    config = dataclasses.replace(CONFIG, policy="static" if options.pop("static", False) else "ado", **options)
    return simulate(lambda n_K: change(response(n_K), n_K), PRIOR_K, config=config, steps=1000, block_size=256,
                    noise=0.02, names_K=["code", "web", "wiki"])  # fmt: skip


def test_a_bad_shard_is_a_loss_above_its_law():
    def bad_shard(loss_K, n_K):
        return loss_K * np.where((np.arange(3) == 1) & (n_K > 40_000), 1.06, 1.0)

    alarms = run_of(bad_shard).alarms
    above = [alarm for alarm in alarms if alarm.kind == "above_law"]
    assert [alarm.domain for alarm in above] == ["web"]  # once, though it goes on
    assert "above its law, 2 refits in a row" in above[0].evidence and "shard" in above[0].look_at
    assert {alarm.domain for alarm in alarms} == {"web"}


@pytest.mark.parametrize("static", [False, True])
def test_a_domain_that_is_forgotten_gets_worse(static):
    """Its loss rises slowly; a run without laws sees that too."""

    def forgotten(loss_K, n_K):
        return loss_K + np.array([0.0, 0.0, 0.3]) * np.log(np.maximum(n_K.sum() / 100_000, 1.0))

    worse = [alarm for alarm in run_of(forgotten, static=static).alarms if alarm.kind == "worse"]
    assert [alarm.domain for alarm in worse] == ["wiki"]
    assert "of the samples are its own" in worse[0].evidence and "displace" in worse[0].look_at


def test_a_domain_that_will_run_out_is_named_before_it_does():
    response = random_response(np.random.default_rng(3), 3)
    config = dataclasses.replace(CONFIG, policy="static", max_epochs="web=2")
    result = simulate(response, PRIOR_K, config=config, steps=400, block_size=256, names_K=["code", "web", "wiki"],
                      length_K=[10**6, 10_000, 10**6])  # fmt: skip
    alarm, = result.alarms
    # 2 epochs are 20,000 samples, 30 % of a block are 76.8: 261 blocks, of which 101 are done at the first look
    assert (alarm.kind, alarm.domain) == ("runs_out", "web")
    assert "0.78 epochs are drawn, and at 30.0% of the samples it will be, after 160 more steps, at" in alarm.text
    assert "its cap of 2.00" in alarm.text
    assert "--ado-max-epochs" in alarm.look_at


# ---------------------------------------------------------------- by hand


def rows_of(loss_TxK, step=0, every=5):
    loss_TxK = np.asarray(loss_TxK, np.float64)
    total_T = 256.0 * (step + every * np.arange(len(loss_TxK)) + 1)
    return {"step_T": step + every * np.arange(len(loss_TxK)), "total_T": total_T, "n_TxK": total_T[:, None] / 2,
            "loss_TxK": loss_TxK, "tokens_TxK": np.where(loss_TxK > 0, 1000.0, 0.0)}  # fmt: skip


def refit(step, loss_TxK, **values):
    supply = Supply(np.array([0.5, 0.5]), np.full(2, 1e6), np.full(2, 1e3), None, 1e5, 256)
    given = {"laws": None, "failure": None, "supply": supply, "samples_K": np.full(2, 1000 * step),
             "tokens_K": np.full(2, 64e3 * step)} | values  # fmt: skip
    return Refit(step, rows_of(loss_TxK), **given)


FLAT = np.full((20, 2), 2.0)


def test_a_rank_that_does_not_train_shows_in_the_tokens_of_a_sample():
    alarms = Alarms(["code", "web"])
    assert alarms.at_refit(refit(1, FLAT)) == [] and alarms.at_refit(refit(2, FLAT)) == []
    tokens_K = np.array([3 * 64e3, 2 * 64e3 + 56e3])  # an eighth less, of one domain
    alarm, = alarms.at_refit(refit(3, FLAT, tokens_K=tokens_K))
    assert (alarm.kind, alarm.domain) == ("draws", "web")
    assert alarm.evidence.startswith("56.0 tokens a sample were measured since step 2, 64.0 before")
    assert "ado-megatron audit" in alarm.look_at
    assert alarms.at_refit(refit(4, FLAT, tokens_K=tokens_K + np.array([64e3, 56e3]))) == []  # said once
    assert alarms.at_refit(refit(5, FLAT, tokens_K=tokens_K + np.array([128e3, 120e3]))) == []  # over
    assert len(alarms.at_refit(refit(6, FLAT, tokens_K=tokens_K + np.array([192e3, 176e3])))) == 1  # again


# What ranks 0 to 3 measured of two domains between two refits; rank 2 is no data rank.
EVEN = np.array([[1, 6400, 3200], [1, 6200, 3400], [0, 0, 0], [1, 6500, 3100]], float)


def refits_of_ranks(alarms, *new_WxN):
    """The alarms of refits with what each rank measured between them."""
    total, found = np.zeros((4, 3)), []
    for n, one in enumerate(new_WxN):
        total = total + one
        samples_K = np.round(total[:, 1:].sum(0) / 64).astype(int)
        found.append(alarms.at_refit(refit(n + 1, FLAT, ranks_WxN=total, samples_K=samples_K, tokens_K=samples_K * 64)))
    return found


def test_a_rank_that_trains_on_less_than_others_is_named_at_the_second_refit():
    less = EVEN.copy()
    less[3] = [1, 5800, 2900]
    found = refits_of_ranks(Alarms(["code", "web"]), EVEN, less, EVEN, less, less, less, EVEN)
    assert [len(one) for one in found] == [0, 0, 0, 0, 1, 0, 0]
    alarm, = found[4]
    assert (alarm.kind, alarm.domain) == ("draws", None)
    assert alarm.text.startswith("all domains: rank 3 has 9.4% fewer tokens than others have trained on, since step 4")


def test_a_rank_that_draws_more_of_a_domain_than_its_part_is_named_with_the_domain():
    other = EVEN * 20
    other[1, 1:] = [96_000, 96_000]  # 1,500 samples of each, where two thirds are code everywhere else
    found = refits_of_ranks(Alarms(["code", "web"]), EVEN * 20, other, other)
    assert [[alarm.domain for alarm in one] for one in found] == [[], [], ["code", "web"]]
    assert all(alarm.evidence.startswith("rank 1 has trained on 1,500 of its samples") for alarm in found[2])


def test_chance_and_small_numbers_are_no_uneven_draws():
    rng = np.random.default_rng(0)
    for samples in (4, 64, 4096):
        alarms = Alarms(["code", "web"])
        deals = [np.column_stack([np.ones(4), 64.0 * rng.multinomial(samples, [0.9, 0.1], 4)]) for _ in range(200)]
        assert [alarm for one in refits_of_ranks(alarms, *deals) for alarm in one] == []


def test_what_is_remembered_goes_through_a_sidecar():
    """Alarms that are stopped and go on after each refit raise what alarms without a stop raise."""
    good = Laws.given([[2.0, 0.3, 0.3], [2.0, 0.3, 0.3]])
    good = dataclasses.replace(good, covariance_Kx3x3=np.zeros((2, 3, 3)))
    bad = dataclasses.replace(good, ok_K=np.array([True, False]), reason_K=["", "not identified"])
    steps = [dict(laws=good), dict(laws=bad), dict(failure="x"), dict(failure="y"), dict(laws=bad), dict(laws=bad),
             dict(laws=bad), dict(laws=bad), dict(failure="z"), dict(failure="z")]  # fmt: skip

    def texts(stops):
        alarms, found = Alarms(["code", "web"]), []
        for n, values in enumerate(steps):
            rising = FLAT * (1.0 + 0.04 * max(n - 3, 0))
            found += [(n, alarm.kind, alarm.domain) for alarm in alarms.at_refit(refit(n + 1, rising, **values))]
            if stops:
                arrays = {name: np.array(value) for name, value in alarms.memory.to_arrays().items()}
                alarms = Alarms(["code", "web"], Memory.from_arrays(arrays, np.arange(2)))
        return found

    assert texts(True) == texts(False) and {kind for _, kind, _ in texts(True)} == {"fits", "worse", "above_law"}


def test_of_other_domains_only_those_that_stay_are_remembered():
    memory = Memory.new(2)
    memory.failed, memory.above_K[:], memory.per_sample_K[:] = 1, [3, 4], [64.0, 32.0]
    memory.standing_AxK1[0] = [True, False, True]
    again = Memory.from_arrays(memory.to_arrays(), np.array([1, -1, 0]))
    assert again.failed == 1 and again.above_K.tolist() == [4, 0, 3]
    np.testing.assert_array_equal(again.per_sample_K, [32.0, np.nan, 64.0])
    assert again.standing_AxK1[0].tolist() == [False, False, True, True]


def test_fits_that_fail_are_said_at_the_second():
    alarms = Alarms(["code", "web"])
    assert alarms.at_refit(refit(1, FLAT, failure="out of memory")) == []
    alarm, = alarms.at_refit(refit(2, FLAT, failure="it took longer than 120 s"))
    assert (alarm.kind, alarm.domain) == ("fits", None)
    assert "2 fits in a row have failed, the last because it took longer than 120 s" in alarm.text
    assert alarm.text.startswith("all domains: ")


def test_a_law_that_is_refused_again_and_again_is_said_of_its_domain():
    good = Laws.given([[2.0, 0.3, 0.3], [2.0, 0.3, 0.3]])
    bad = dataclasses.replace(good, ok_K=np.array([True, False]), reason_K=["", "the speed is not identified"])
    alarms = Alarms(["code", "web"])
    found = [alarms.at_refit(refit(n + 1, FLAT, laws=laws)) for n, laws in enumerate([bad] * 5 + [good] + [bad] * 4)]
    assert [len(one) for one in found] == [0] * 9 + [1]  # never had one; then four in a row
    assert (found[-1][0].kind, found[-1][0].domain) == ("fits", "web")
    assert "the speed is not identified" in found[-1][0].evidence


def test_a_record_holds_what_was_said():
    alarms = Alarms(["code", "web"])
    alarms.at_refit(refit(1, FLAT, failure="x"))
    record = alarms.at_refit(refit(2, FLAT, failure="x"))[0].to_record()
    assert record["alarm"] == "fits" and record["domain"] is None
    assert record["text"] == f"all domains: {record['evidence']}. Look at {record['look_at']}."


def test_a_window_has_the_rows_since_the_last_refit_or_eight():
    loss_TxK = np.full((30, 3), 2.0)
    loss_TxK[:20, 0] = 3.0  # 10 rows since step 100
    loss_TxK[22:, 1] = np.nan  # 2 rows since, 6 before them
    loss_TxK[7:, 2] = np.nan  # too few
    window = Window.of(rows_of(loss_TxK), 100)
    np.testing.assert_allclose(np.exp(window.y_K), [2.0, 2.0, np.nan])
    np.testing.assert_array_equal(window.first_step_K[:2], [100, 70])
    np.testing.assert_allclose(window.n_K[0], rows_of(loss_TxK)["n_TxK"][20:].mean())


def test_the_error_of_a_window_is_that_of_its_mean_and_a_trend_hardly_counts():
    rng = np.random.default_rng(0)
    loss_TxK = np.exp(np.linspace(1.2, 1.0, 400)[:, None] + 0.01 * rng.standard_normal((400, 2)))
    window = Window.of(rows_of(loss_TxK), 0)
    np.testing.assert_allclose(window.error_K, 0.01 / np.sqrt(400), rtol=0.15)


def test_an_empty_history_raises_nothing():
    assert Alarms(["code", "web"]).at_refit(refit(1, np.zeros((0, 2)))) == []


def test_rows_before_a_window_do_not_count_however_many_there_are():
    rng = np.random.default_rng(5)
    loss_TxK = rng.uniform(2, 3, (400, 3))
    loss_TxK[:, 1][rng.random(400) < 0.95] = np.nan  # a rare domain: its window reaches far back; 5 steps a row
    loss_TxK[:30, 2] = np.nan
    whole, spoilt = Window.of(rows_of(loss_TxK), 1900), loss_TxK.copy()
    seen = np.flatnonzero(np.isfinite(loss_TxK[:, 1]))
    spoilt[: seen[-8], 1], spoilt[:380, 0] = 9.0, 9.0
    other = Window.of(rows_of(spoilt), 1900)
    for name in ("first_step_K", "y_K", "error_K", "n_K", "total_K"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(other, name))
    assert whole.first_step_K[0] == 1900 > whole.first_step_K[1] == 5 * seen[-8]
