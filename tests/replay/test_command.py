"""`ado-megatron replay` against a recorded trace of the released loop, and its contract."""

import pathlib

import numpy as np
import pytest
from scipy.signal import savgol_filter

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.replay import command as replay
from ado_megatron.scaling_law.fit import fit_laws

GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "released_k3.npz"


def test_released_reproduces_the_recorded_weights(tmp_path):
    out = tmp_path / "out.npz"
    assert replay.main([str(GOLDEN), "--profile", "released", "--out", str(out)]) == 0
    expected = np.load(GOLDEN)["expected_weights_TxK"]
    weights = np.load(out)["weights_TxK"]
    assert np.abs(expected - expected[0]).max() > 0.05, "the recorded weights move"
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-12)


def toy_trace(path, steps=300, num=3, seed=0, **extra):
    rng = np.random.default_rng(seed)
    prior = rng.dirichlet(np.ones(num) * 5)
    counts = rng.multinomial(32, prior, steps)
    n = np.maximum(np.cumsum(counts, 0), 1)
    loss = (2.0 + rng.uniform(1, 6, num) * n**-0.3) * np.exp(0.01 * rng.standard_normal(counts.shape))
    loss[counts == 0] = np.nan
    np.savez(path, prior_K=prior, counts_TxK=counts, loss_TxK=loss, **extra)
    return prior, counts, loss


def released_by_definition(trace, own_n):
    """The released loop written out step by step for given laws (an own, slow, direct form)."""
    prior, counts_TxK = trace["prior_K"], trace["counts_TxK"]
    given = dict(zip(trace["law_steps_R"].tolist(), trace["laws_RxKx3"], strict=True))
    pi, pi_bar, h, n, law, rows = prior, prior, prior, np.zeros(prior.size), None, []
    for t, counts in enumerate(counts_TxK):
        n = n + (counts if own_n else counts.sum())
        h = 0.9 * h + 0.1 * counts / counts.sum()
        law = given.get(t, law)
        if law is not None:
            a, e, alpha = law.T
            loss = np.exp(e) + np.exp(a) / n**alpha
            rho = np.maximum(alpha, 0.05) * (loss - np.exp(e)) / n * prior * h**0.5
            rho = rho / rho.sum()
            deficit = max(0.01 * rho.size - rho.sum(), 0)
            rho = np.maximum(rho * (1 - deficit) / rho.sum(), 0.01)
            rho = rho / rho.sum()
            pi = 0.9 * pi_bar + 0.1 * rho
            pi_bar = (1 - 1 / (t + 1)) * pi_bar + rho / (t + 1)
        rows.append(pi)
    return np.array(rows)


@pytest.mark.parametrize("own_n", [False, True])
@pytest.mark.parametrize("num", [3, 22])
def test_released_with_given_laws_is_the_written_out_loop(tmp_path, own_n, num):
    rng = np.random.default_rng(num)
    laws = np.stack([rng.normal(2, 1, (5, num)), rng.normal(0.6, 0.2, (5, num)), rng.uniform(0.0, 0.8, (5, num))], -1)
    path, out = tmp_path / "trace.npz", tmp_path / "out.npz"
    toy_trace(path, num=num, law_steps_R=np.arange(100, 350, 50)[:5], laws_RxKx3=laws)
    flag = "--own-n" if own_n else "--no-own-n"
    replay.main([str(path), "--profile", "released", "--start-step", "100", "--refit-interval", "50", flag,
                 "--out", str(out)])
    expected = released_by_definition(np.load(path), own_n)
    np.testing.assert_allclose(np.load(out)["weights_TxK"], expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(np.load(out)["laws_RxKx3"], laws[:4])  # the fifth is after the end


def test_fits_come_at_the_released_steps_on_the_smoothed_history(tmp_path):
    path, out = tmp_path / "trace.npz", tmp_path / "out.npz"
    prior, counts, loss = toy_trace(path)
    replay.main([str(path), "--profile", "released", "--start-step", "120", "--refit-interval", "60",
                 "--ignore-steps", "50", "--out", str(out)])
    got = np.load(out)
    assert got["law_steps_R"].tolist() == [120, 180, 240]
    assert got["laws_RxKx3"].shape == (3, 3, 3) and got["objective_RxK"].shape == (3, 3)
    filled = loss[:181].copy()
    for t in range(181):
        absent = np.isnan(filled[t])
        filled[t, absent] = filled[t - 1, absent] if t else (loss[0] * counts[0])[~absent].sum() / 32
    y = savgol_filter(filled, 101, 3, axis=0)[50::10]
    n = np.cumsum(counts.sum(1))[:181][50::10]
    laws = fit_laws(n, y, AdoConfig(profile="released"))
    np.testing.assert_allclose(got["objective_RxK"][1], laws.objective_K, rtol=1e-9)
    np.testing.assert_array_equal(got["weights_TxK"][:120], np.tile(prior / prior.sum(), (120, 1)))


def test_variants_side_by_side_are_saved_and_drawn(tmp_path, capsys):
    path, out, image = tmp_path / "trace.npz", tmp_path / "out.npz", tmp_path / "plot.png"
    toy_trace(path)
    variant = "ado:credit_exponent=0.5,own-n=false"
    assert replay.main([str(path), "--profile", "ado", "--profile", variant, "--start-step", "100",
                        "--out", str(out), "--plot", str(image)]) == 0
    got = np.load(out)
    np.testing.assert_array_equal(got["weights_TxK"], got["ado/weights_TxK"])
    assert np.abs(got["ado/weights_TxK"] - got[f"{variant}/weights_TxK"]).max() > 1e-3
    assert image.stat().st_size > 10_000
    assert "domain2" in capsys.readouterr().out


def test_static_export_is_the_average_in_force(tmp_path, capsys):
    path, out = tmp_path / "trace.npz", tmp_path / "out.npz"
    toy_trace(path, domains=np.array(["wiki", "code", "web"]))
    replay.main([str(path), "--start-step", "100", "--export-static", "--out", str(out)])
    words = capsys.readouterr().out.split()
    assert words[1::2] == ["wiki", "code", "web"]
    weights = np.load(out)["weights_TxK"]
    initial = replay.replay(replay.read_trace(str(path)), AdoConfig(start_step=100)).initial_K
    expected = (initial + weights[:-1].sum(0)) / len(weights)
    np.testing.assert_allclose([float(word) for word in words[::2]], expected, atol=1e-6)


@pytest.mark.parametrize("variant", ["ado:colour=1", "ado:own_n=maybe", "ado:stride=x", "best"])
def test_bad_variants_are_refused(tmp_path, variant):
    toy_trace(tmp_path / "trace.npz", steps=5)
    with pytest.raises(UserError):
        replay.main([str(tmp_path / "trace.npz"), "--profile", variant])


def test_names_with_dollars_are_drawn_and_a_picture_of_no_format_is_a_sentence(tmp_path):
    path = tmp_path / "trace.npz"
    toy_trace(path, steps=20, domains=np.array(["a$b$", "$\\oops{", "c"]))
    assert replay.main([str(path), "--plot", str(tmp_path / "plot.png")]) == 0
    with pytest.raises(UserError, match="--plot .*plot.odd"):
        replay.main([str(path), "--plot", str(tmp_path / "plot.odd")])
    for flag in ("--out", "--plot"):
        with pytest.raises(UserError, match="cannot be written"):
            replay.main([str(path), flag, str(tmp_path / "nowhere" / "x.png")])


def test_a_trace_without_a_single_loss_is_drawn(tmp_path):
    path = tmp_path / "trace.npz"
    np.savez(path, prior_K=[0.5, 0.5], counts_TxK=np.ones((5, 2), int), loss_TxK=np.full((5, 2), np.nan))
    assert replay.main([str(path), "--plot", str(tmp_path / "plot.png")]) == 0
