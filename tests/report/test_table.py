"""The words and numbers of a report, against the made-up run that they come from."""

import copy
import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.report import table
from ado_megatron.report.read import read_run
from ado_megatron.tables import text_table
from tests.kit.runs import NAMES, PRIOR, make_run, steps_of, write_records


def test_the_table_holds_the_sums_and_ends_of_the_run(arms, run):
    records = steps_of(arms[0][1])
    columns = dict(table.columns(run))
    tokens = np.sum([record["tokens_K"] for record in records], axis=0)
    assert columns["domain"] == NAMES
    assert columns["tokens"] == [f"{t:,}" for t in tokens]
    assert columns["prior"] == [f"{p:.2%}" for p in PRIOR]
    assert columns["weight now"] == [f"{w:.2%}" for w in records[-1]["weights_K"]]
    assert columns["epochs"] == [f"{e:.2f}" for e in records[-1]["epochs_C"]]
    first = [next(r["loss_K"][k] for r in records if r["loss_K"][k] is not None) for k in range(len(NAMES))]
    assert columns["loss first"] == [f"{value:.3f}" for value in first]


def test_under_caps_the_table_says_when_a_domain_runs_out(tmp_path):
    """The present weights are .5 .3 .2: the third domain has 1,600 samples at most, the others have plenty."""
    caps = [10**6, 10**6, 1600]
    kwargs = {"names": ["a", "b", "c"], "prior": np.array([0.5, 0.3, 0.2]), "steps": 100, "adaptive": False}
    last = steps_of(make_run(tmp_path, **kwargs, planned=400, caps=caps))[-1]
    columns = dict(table.columns(read_run(tmp_path)))
    drawn = np.array(last["epochs_C"]) * [15000, 9000, 6000]
    samples = (1600 - drawn[2]) / 0.2
    assert columns["runs out"] == ["–", "–", f"{100 + int(np.ceil(samples / 32))}"]
    rest = 300 * 32 - samples  # shared by the two others, 5 to 3
    more = np.array([0.5 * samples + rest * 5 / 8, 0.3 * samples + rest * 3 / 8, 0.2 * samples])
    assert columns["at end"] == [f"{e:.2f}" for e in (drawn + more) / [15000, 9000, 6000]]
    make_run(tmp_path, **kwargs)
    assert not {"runs out", "at end"} & set(dict(table.columns(read_run(tmp_path))))  # no caps, and nothing left


def test_laws_and_forecast_are_those_of_the_last_accepted_fit(arms, run):
    fits = [record for record in arms[0][1] if record["type"] == "fit"]
    last_ok = [max(f["step"] for f in fits if f["ok_K"][k]) for k in range(len(NAMES))]
    assert run.laws().step_K.tolist() == last_ok
    chosen = [next(f for f in fits if f["step"] == step) for step in last_ok]
    n_K = np.sum([r["counts_K"] for r in steps_of(arms[0][1])], axis=0)
    for k, fit in enumerate(chosen):
        expected = np.exp(fit["log_epsilon_K"][k]) + np.exp(fit["log_beta_K"][k]) * (2 * n_K[k]) ** -fit["alpha_K"][k]
        assert table.forecast_K(run)[k] == pytest.approx(expected, rel=1e-12)


def test_a_domain_whose_last_fit_failed_says_why_and_keeps_its_law(tmp_path):
    records = make_run(tmp_path, steps=300)
    for record in records:
        if record["type"] == "fit" and record["step"] >= 200:
            record["ok_K"][0], record["reason_K"][0], record["alpha_K"][0] = False, "too few points", None
        if record["type"] == "fit":
            record["ok_K"][1], record["reason_K"][1] = False, "not finite"
    write_records(tmp_path, records)
    made = read_run(tmp_path)
    note, law = dict(table.columns(made))["last fit"], dict(table.columns(made))["law ε + β·n^−α"]
    assert note[0] == "law of step 150 kept: too few points" and law[0] != "–"
    assert note[1] == "no law yet: not finite" and law[1] == "–"
    assert np.isnan(table.forecast_K(made)[1])


def test_epochs_of_a_group_are_of_its_prefixes_with_a_share_together(tmp_path):
    records = make_run(tmp_path, steps=20, names=["a", "b"], prior=np.array([0.5, 0.5]), adaptive=False)
    records[0] |= {"domain_of_C": [0, 1, 0, 1], "lengths_C": [100, 200, 10, 500], "share_C": [0.9, 1, 0.1, 0]}
    records[0] |= {"caps_C": [25, 1000, 30, 500], "num_blocks": 100}
    for record in steps_of(records):
        record["epochs_C"] = [0.25, 0.5, 3.0, 0.0]
    write_records(tmp_path, records)
    made = read_run(tmp_path)
    assert made.supply.drawn_K.tolist() == [55, 100] and made.supply.length_K.tolist() == [110, 200]
    assert made.supply.cap_K.tolist() == [55, 1000]
    columns = dict(table.columns(made))
    assert columns["epochs"] == ["0.50", "0.50"] and columns["runs out"][0] == "at its cap"


def test_the_comparison_counts_and_warns(arms, run):
    static = read_run(arms[1][0])
    text = table.comparison_text(run, static)
    gap_K = run.validation_VxK[-1] - static.validation_VxK[-1]
    assert "validation loss after 600 steps" in text[0] and f"{gap_K.mean():+.4f} nats" in text[0]
    assert f"lower in {(gap_K < 0).sum()} of 8" in text[0]
    assert "one pair of runs" in text[1]
    assert len(text) == 2  # same seed, same number of samples: nothing else differs


def test_runs_that_differ_in_more_than_the_mixture_are_called_so(tmp_path, run):
    make_run(tmp_path, steps=300, adaptive=False, config={"seed": 9})
    other = read_run(tmp_path)
    text = table.comparison_text(run, other)[-1]
    assert "seed is 1234 here and 9 there" in text and "samples were measured" in text


def test_without_common_validation_the_training_loss_is_compared(tmp_path, run):
    make_run(tmp_path, steps=100, adaptive=False)
    what, ours_K, _ = table.final_losses(run, read_run(tmp_path))
    assert what == "training loss at the end"
    np.testing.assert_array_equal(ours_K, run.last_loss_K())


def test_runs_on_other_domains_are_not_compared(tmp_path, run):
    make_run(tmp_path, names=["a", "b"], prior=np.array([0.5, 0.5]), steps=20, adaptive=False)
    with pytest.raises(UserError, match="compare runs on the same data"):
        table.comparable(run, read_run(tmp_path))


# ---------------------------------------------------------------- what sets two runs apart

# What a run's outcome cannot depend on: where it is measured and reported, and how far ahead its rows are planned.
ALIKE = {"validation", "accept_changes", "accept_data", "lead", "fit_lag", "log_interval", "audit", "wait_deadline",
         "fit_deadline", "export_static", "prometheus"}  # fmt: skip
ASKED = {"policy", "shadow"}  # the very thing that is compared: adaptive or not


def another(spec, value):
    """A value of an option other than the run's, that it may have."""
    meta = spec.metadata
    if meta["kind"] is bool:
        return not value
    if meta["choices"] is not None:
        return next(choice for choice in meta["choices"] if choice != value)
    if meta["kind"] is str:
        return "something"
    number = (value or 0) + 2 if meta["kind"] is int else (value or 0.0) * 0.9 + 0.013
    return type(number)(min(number, meta["high"])) if meta["high"] is not None else number


@pytest.mark.parametrize("spec", dataclasses.fields(AdoConfig), ids=lambda spec: spec.name)
def test_two_runs_are_called_different_for_what_can_change_the_outcome_alone(run, spec):
    """Whatever new option comes: it is compared, unless it stands in one of the two lists above."""
    config = copy.copy(run.config)
    value = another(spec, getattr(config, spec.name))
    object.__setattr__(config, spec.name, value)  # alone, also where it would need another option beside it
    found = table.differences(run, dataclasses.replace(run, config=config))
    if spec.name in ALIKE | ASKED:
        assert found == []
    else:
        assert found == [f"{spec.name} is {getattr(run.config, spec.name)} here and {value} there"]


def test_a_run_that_was_measured_in_other_ways_is_the_same_run(tmp_path, run):
    config = {"validation": True, "accept_changes": True, "lead": 7, "fit_lag": 3, "log_interval": 5, "audit": True}
    make_run(tmp_path, adaptive=False, seed=1, config=config)
    assert len(table.comparison_text(run, read_run(tmp_path))) == 2  # the difference and the caution, no more


def test_runs_with_other_priors_are_called_so(run):
    other = dataclasses.replace(run, prior_K=np.roll(run.prior_K, 1))
    assert table.differences(run, other) == ["the priors differ"]


# ---------------------------------------------------------------- gaps


def test_what_a_run_could_not_write_is_said_under_its_table_and_on_its_page(tmp_path, capsys):
    records = make_run(tmp_path, steps=40, adaptive=False)
    records.insert(5, {"type": "gap", "step": 15, "from_step": 5, "records": 1234})
    records.append({"type": "gap", "step": 60, "from_step": 60, "records": 1})
    write_records(tmp_path, records)
    assert cli.main(["report", str(tmp_path)]) == 0
    lines = [
        f"{what} could not be written or read; tokens, n and losses leave them out"
        for what in ("1,234 records of steps 5 to 15", "1 record of steps 60 to 60")
    ]
    assert capsys.readouterr().out.splitlines()[9:11] == lines
    assert all(line in (tmp_path / "ado" / "report.html").read_text() for line in lines)


def test_the_printed_table_is_plain_and_in_a_pipe_the_same(tmp_path, run, monkeypatch):
    make_run(tmp_path, steps=40, adaptive=False)
    columns = table.columns(read_run(tmp_path))
    plain = text_table(columns, table.LEFT)
    widths = [max(map(len, (heading, *cells))) for heading, cells in columns]
    sides = ["<" if heading in table.LEFT else ">" for heading, _ in columns]
    for line, row in zip(plain.split("\n")[1:], zip(*(cells for _, cells in columns), strict=True), strict=True):
        assert line == "  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)).rstrip()
    code = "import sys; from ado_megatron.cli import main; sys.exit(main(['report', sys.argv[1]]))"
    piped = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert piped.stdout.startswith(plain + "\n")


def test_alarms_and_changes_by_hand_stand_under_the_table(tmp_path, capsys):
    records = make_run(tmp_path, steps=20)
    records.append({"type": "alarm", "step": 20, "text": "cpp: above its\x1b law", "alarm": "above_law"})
    write_records(tmp_path, records)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "\nalarm, step 20: cpp: above its� law\n" in capsys.readouterr().out
