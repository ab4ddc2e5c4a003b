"""Simulated runs: the same decisions as a Mixer's, losses as documented, options and bad input.

Legend: K domains, S blocks.
"""

import numpy as np
import pytest
import torch

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.mixer import Mixer, World
from ado_megatron.scaling_law.smoothing import fit_history
from ado_megatron.simulate import PowerResponse, simulate
from ado_megatron.simulate.simulation import _Losses
from ado_megatron.stream.sample_key import pack_key

PRIOR_K = np.array([0.5, 0.3, 0.2])
QUICK = dict(policy="ado", refit_interval=20, start_step=20, ignore_steps=2, stride=1, early_refits=False,
             gate_points=5)  # fmt: skip
RESPONSE = PowerResponse(
    np.log([3.0, 4.0, 2.0]), np.log([1.0, 2.0, 0.5]), np.array([0.3, 0.2, 0.5]), np.eye(3) + 0.1, 16.0
)


def run(response=RESPONSE, prior_K=PRIOR_K, *, steps=100, block_size=16, noise=0.01, **rest):
    options = {name: rest.pop(name) for name in list(rest) if hasattr(AdoConfig, name) and name != "seed"}
    config = AdoConfig(**(QUICK | options))
    return simulate(response, prior_K, config=config, steps=steps, block_size=block_size, noise=noise, **rest)


class InPlace:
    """A fit that is made when it is begun, in this process, with the interface of a fit process."""

    def __init__(self, history, config, *rest, **named):
        from ado_megatron.scaling_law.fit_process import FitOutcome

        self.outcome = FitOutcome(fit_history(history, config), "", 0.0, 0.0)

    def result(self, deadline):
        return self.outcome

    def cancel(self):
        pass


@pytest.mark.parametrize("options", [
    {}, {"profile": "released", "smoothing_window": 5},
    {"policy": "plan", "probe": 20.0, "probe_length": 3, "transfer": "estimate", "plan_gate": 0.0,
     "early_refits": True},
])  # fmt: skip
def test_what_a_mixer_decides_on_the_same_losses(tmp_path, monkeypatch, options):
    steps, block = 100, 16
    config = AdoConfig(**(QUICK | {"max_change": 1.0} | options))
    result = simulate(RESPONSE, PRIOR_K, config=config, steps=steps, block_size=block, noise=0.02, seed=5)
    z_SxK = np.random.default_rng(5).standard_normal((steps, 3))

    monkeypatch.setattr("ado_megatron.mixer.rank_zero.Fit", InPlace)
    domains = Domains.build(["data/d0", "data/d1", "data/d2"], PRIOR_K, [10**6] * 3, config)
    mixer = Mixer(config, domains, total_samples=steps * block, block_size=block, world=World.single(),
                  run_dir=tmp_path, log=lambda line: None)  # fmt: skip
    mixer.start()
    weights_SxK, drawn_K = [], np.zeros(3)
    for step in range(steps):
        weights_SxK.append(mixer.weights_K(step * block))
        columns = [mixer.schedule.locate(i)[0] for i in range(step * block, (step + 1) * block)]
        counts_K = np.bincount(columns, minlength=3)
        drawn_K += counts_K
        loss_K = RESPONSE(drawn_K) * np.exp(0.02 * z_SxK[step] / np.sqrt(3 * np.maximum(counts_K, 1) / block))
        mixer.begin_step(step)
        keys = torch.tensor([pack_key(step * block + i, column) for i, column in enumerate(columns)])
        mixer.meter.add(torch.tensor(loss_K[columns])[:, None], torch.ones(block, 1), keys)
        mixer.end_step(step, (step + 1) * block)
    mixer.close()
    assert result.counts_K.tolist() == drawn_K.tolist()
    assert np.ptp(result.weights_SxK, axis=0).max() > 0.02  # it did move
    np.testing.assert_allclose(result.weights_SxK, weights_SxK, atol=1e-6)


def test_observed_losses_are_those_of_the_formula():
    share_SxK = np.array([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25]])
    n_SxK = np.array([[8, 8, 0], [12, 16, 4]])
    losses = _Losses(RESPONSE, "abc", 0.04, 7)
    got_SxK = np.vstack([losses.observed(n_SxK[s : s + 1], share_SxK[s : s + 1], s) for s in range(2)])
    z_SxK = np.random.default_rng(7).standard_normal((2, 3))
    for s in range(2):
        for k in range(3):
            if share_SxK[s, k] == 0:
                assert got_SxK[s, k] == 0
                continue
            n = n_SxK[s, k] * 1.1 + 0.1 * (n_SxK[s].sum() - n_SxK[s, k])
            beta, epsilon, alpha = [(3, 1, 0.3), (4, 2, 0.2), (2, 0.5, 0.5)][k]
            true = epsilon + beta * (n / 16) ** -alpha
            assert got_SxK[s, k] == pytest.approx(true * np.exp(0.04 * z_SxK[s, k] / (3 * share_SxK[s, k]) ** 0.5))


def test_the_prior_held_fixed():
    result = run(policy="static", steps=50, transfer="estimate", target_K=[0.0, 1.0, 3.0])
    assert np.abs(result.counts_K - PRIOR_K * 50 * 16).max() < 1
    loss_K = RESPONSE(result.counts_K)
    np.testing.assert_allclose(result.final_loss_K, loss_K)
    assert result.target_loss == pytest.approx(0.25 * loss_K[1] + 0.75 * loss_K[2])
    assert result.laws is None and np.isnan(result.transfer_K).all()
    assert (result.weights_SxK == PRIOR_K).all()
    assert run(policy="static", steps=5, transfer="0.3").transfer_K.tolist() == [0.3] * 3


@pytest.mark.parametrize("fit_lag, first", [(0, 21), (7, 28), (35, 56)])
def test_laws_take_effect_when_the_schedule_says(fit_lag, first):
    weights_SxK = run(fit_lag=fit_lag, clip_prior=False).weights_SxK
    assert np.flatnonzero((weights_SxK != PRIOR_K).any(1))[0] == first  # snapshot after block 20


def test_same_seed_same_run_and_another_seed_another():
    first, again, other = run(seed=3), run(seed=3), run(seed=4)
    assert (first.weights_SxK == again.weights_SxK).all()
    assert (first.weights_SxK != other.weights_SxK).any()


def test_laws_of_own_samples_are_found_again():
    response = PowerResponse(RESPONSE.log_beta_M, RESPONSE.log_epsilon_M, RESPONSE.alpha_M, np.eye(3), 1.0)
    result = run(response, steps=600, noise=1e-4, transfer="own", refit_interval=100)
    np.testing.assert_allclose(result.laws.alpha_K, [0.3, 0.2, 0.5], rtol=0.05)
    np.testing.assert_allclose(result.laws.log_epsilon_K, RESPONSE.log_epsilon_M, atol=0.05)


def test_a_transfer_is_found_by_probing():
    gamma_KxK = np.eye(3) + np.array([[0.02], [0.5], [0.1]])  # s_k of every other domain's samples
    response = PowerResponse(RESPONSE.log_beta_M, RESPONSE.log_epsilon_M, RESPONSE.alpha_M, gamma_KxK, 16.0)
    result = run(response, steps=1000, noise=0.001, policy="plan", transfer="estimate", probe=40.0, probe_length=50,
                 refit_interval=250)  # fmt: skip
    np.testing.assert_allclose(np.log(result.transfer_K), np.log([0.02, 0.5, 0.1]), atol=0.4)
    assert (result.laws.transfer_low_K < result.transfer_K).all()


def test_a_domain_of_prior_zero_is_never_drawn():
    result = run(prior_K=[0.7, 0.0, 0.3])
    assert result.counts_K[1] == 0 and np.isfinite(result.target_loss)


def test_epoch_caps_hold():
    result = run(length_K=[100, 5000, 5000], max_epochs="2")
    assert result.counts_K[0] == 200 and result.counts_K.sum() == 1600


def test_names_reach_the_options(tmp_path):
    (tmp_path / "s.json").write_text('[{"block": 10, "weights": {"code": 1}}]')
    result = run(policy="stages", stages=str(tmp_path / "s.json"), names_K=["web", "code", "news"], steps=20)
    assert result.weights_SxK[9].tolist() == PRIOR_K.tolist() and result.weights_SxK[10].tolist() == [0.0, 1.0, 0.0]
    assert run(target="code=1", names_K=["web", "code", "news"], steps=5).target_K.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("change, words", [
    ({"prior_K": [0.5, np.nan, 0.5]}, "prior"), ({"prior_K": [0.0, 0.0, 0.0]}, "prior"),
    ({"target_K": [0.0, 0.0, 0.0]}, "target"), ({"target_K": [1.0]}, "target_K has 1 entries for 3 domains"),
    ({"target": "natural"}, "sizes of the domains"), ({"target": "odd=1"}, "no domain 'odd'"),
    ({"steps": 0}, "at least one step"), ({"noise": np.nan}, "noise"), ({"names_K": ["a", "a", "b"]}, "distinct"),
    ({"response": lambda n_K: [1.0]}, r"shape \(1,\) for 3 domains"),
    ({"response": lambda n_K: [1.0, -2.0, 1.0]}, "domain d1 loss -2.0 in step 0"),
    ({"response": lambda n_K: np.where(n_K > 100, np.nan, 1.0)}, "domain d0 loss nan in step 12"),
    ({"length_K": [1, 1, 1], "max_epochs": "2"}, "--ado-max-epochs"),
])  # fmt: skip
def test_bad_input_is_a_sentence(change, words):
    with pytest.raises(UserError, match=words):
        run(**change)
