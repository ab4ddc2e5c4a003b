"""benchmarks/quality.py: fits find what made a table, runs are kept, the schedule ends at 1, the table is right.

Legend: K domains, R rows.
"""

import json
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FIVE = ("academic", "prose", "dialogue", "symbolic", "internet")


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality
    import quality_responses
    import quality_table

    return quality, quality_responses, quality_table


def rows(num, num_domains, seed=0):
    """Samples of mixtures at several lengths, in steps × share."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(num_domains), num) * rng.choice([3000, 10_000, 30_000], num)[:, None]


def test_a_fit_finds_the_power_form(quality):
    _, responses, _ = quality
    n_RxK = rows(300, 3)
    gamma_K = np.array([0.2, 1.0, 0.05])
    loss_R = 1.5 + np.exp(3.0) * (n_RxK @ gamma_K) ** -0.4
    b, e, a, g_K, rms = responses.fit("power", n_RxK, loss_R, own=1)
    np.testing.assert_allclose([b, np.exp(e), a, *g_K], [3.0, 1.5, 0.4, *gamma_K], rtol=0.02)
    assert rms < 1e-4


def test_a_fit_finds_the_exponential_form(quality):
    _, responses, _ = quality
    n_RxK = rows(300, 3)
    total_R = n_RxK.sum(1)
    t_K = np.array([0.5, -1.0, 0.2])
    loss_R = 1.5 + np.exp(3.0) * total_R**-0.4 * np.exp(n_RxK @ t_K / total_R)
    values = responses.fit("exponential", n_RxK, loss_R, 0)[:4]
    response = responses.ExponentialResponse(*(np.array([value]) for value in values))
    again_R = [response(n_K)[0] for n_K in n_RxK]
    np.testing.assert_allclose(again_R, loss_R, rtol=1e-3)
    assert response.gamma_MxK[0, 1] < response.gamma_MxK[0, 2] < response.gamma_MxK[0, 0]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_a_schedule_takes_off_what_it_says_and_ends_at_one(quality, schedule):
    module, responses, _ = quality
    response = responses.PowerResponse(np.log([2.0]), np.log([1.0]), np.array([0.5]), np.eye(1))
    seen = module.Scheduled(response, 1000.0, schedule)
    assert seen(np.array([1000.0]))[0] == response(np.array([1000.0]))[0]
    early = (seen(np.array([1.0]))[0] - 1.0) / (response(np.array([1.0]))[0] - 1.0)
    assert early == pytest.approx(1.0 if schedule == "constant" else 1 + 0.9 * module.DROP, rel=2e-3)


def test_the_table_by_hand(quality):
    _, _, table = quality

    def row(name, source, gain, seed=0):
        cell = {"source": source, "target": "natural", "prior": "uniform", "schedule": "wsd"}
        return {"name": name, "cell": cell, "seed": seed, "gain": gain, "best_gain": 0.02, "slope": 0.2,
                "worst_domain": 0.1}

    found = [row("a", "x", 0.01), row("a", "x", 0.03, 1), row("a", "y", -0.004), row("a", "y", 0.0, 1),
             row("a", "z", 5.0), row("b", "x", 0.0), row("b", "y", 0.0)]  # fmt: skip
    one = json.loads(table.table(found, as_json=True))["a"]  # b has no cell z, so z does not count
    assert one["cells"] == 2 and one["mean"] == pytest.approx((0.02 - 0.002) / 2)
    assert one["worst"] == pytest.approx(-0.002) and one["losing"] == 1 and one["worst_run"] == -0.004
    assert one["of_best"] == pytest.approx(0.018 / 0.04) and one["worst_cell"] == "y.natural.uniform.wsd"
    assert one["interval"] == pytest.approx(12.706 * 0.011, rel=1e-3)  # t of one degree of freedom, s / √2 = .011
    assert one["percent_of_compute"] == pytest.approx(100 * 0.009 / 0.2)  # the median of two cells is their mean
    assert one["groups"] == {"uniform→natural": pytest.approx(0.009)}


@pytest.fixture
def swarms(tmp_path, quality):
    """A folder with the files that quality.py reads, of made-up runs."""
    _, responses, _ = quality
    rng = np.random.default_rng(1)
    natural_K = np.array([0.3, 0.2, 0.1, 0.1, 0.3])
    np.savez(tmp_path / "response_70M.npz", log_beta_M=np.full(5, 3.0), log_epsilon_M=np.zeros(5),
             alpha_M=np.full(5, 0.4), gamma_MxK=np.eye(5) + 0.1, natural_K=natural_K, names_K=np.array(FIVE),
             steps=30_000)  # fmt: skip
    sets = [name for group in responses.GROUPS.values() for name in group]
    five = {"5Mix_doms": np.array(sets)}
    for size in ("70M", "160M", "305M"):
        w_RxK = rng.dirichlet(np.ones(5), 40)
        w_RxK[0, 0] = 0.0
        five |= {f"5Mix_{size}_w": w_RxK, f"5Mix_{size}_step": np.full(40, 10_000),
                 f"5Mix_{size}_loss": 3 - 0.5 * w_RxK[:, rng.integers(0, 5, len(sets))]}  # fmt: skip
    np.savez(tmp_path / "pile_mixtures.npz", **five)
    train = [*responses.PILE17, "philpapers", "europarl", "nih_exporter", "enron_emails"]
    seventeen = {"train_domains": np.array(train), "valid_domains": np.array(list(responses.PILE17))}
    for size in ("1M", "60M"):
        seventeen |= {f"{size}_weights": rng.dirichlet(np.ones(17), 40), f"{size}_loss": 3 + rng.random((40, 13))}
    np.savez(tmp_path / "pile17_final.npz", **seventeen)
    return tmp_path


def test_what_was_run_is_not_run_again(quality, swarms, capsys, monkeypatch):
    module, _, _ = quality
    argv = [str(swarms), "--out", str(swarms / "out"), "--responses", "response_|exponential_70M_all", "--schedules",
            "wsd", "--targets", "uniform", "--seeds", "1", "--blocks", "60", "--interval", "15000", "--arm", "static",
            "--arm", "released"]  # fmt: skip
    assert module.main([*argv, "--seconds", "0"]) == 1
    assert "8 runs are left" in capsys.readouterr().err
    assert module.main(argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in said[1:]} == {"static", "released"} and said[1].split()[1] == "4"
    monkeypatch.setattr(module, "run", None)
    assert module.main([*argv, "--plot", str(swarms / "q.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["static"]["mean"] == pytest.approx(0.0, abs=1e-3)
    assert (swarms / "q.png").stat().st_size > 1000


def test_halves_are_apart_and_cells_are_fair(quality):
    module, _, _ = quality
    args = module.parser().parse_args(["x", "--out", "y"])
    names = ["power_70M_all", "power_1M_pile13", "response_305M", "power_160M_all", "power_60M_pile13"]
    everything = module.cells(names, args)
    assert len(everything) == 5 * 2 * 2 * 3
    halves = {cell.source: cell.half for cell in everything}
    assert halves == dict(zip(names, ["tune", "tune", "test", "test", "test"], strict=True))
    args.most = 20
    assert module.cells(names, args) == everything[:20]
    assert len({cell.source for cell in everything[:20]}) == 5
