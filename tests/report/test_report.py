"""The report: numbers of the table against the made-up run they come from, pictures that hold what they should."""
import base64
import html.parser
import json
import re

import matplotlib
import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.errors import UserError
from ado_megatron.report import figures
from ado_megatron.report import table as report
from ado_megatron.report.data import Run, read_run, token_mean
from tests.kit.runs import NAMES, PRIOR, make_run


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    return (folder / "adaptive", make_run(folder / "adaptive")), (folder / "static", make_run(
        folder / "static", adaptive=False, seed=1))  # fmt: skip


@pytest.fixture(scope="module")
def run(arms) -> Run:
    return read_run(arms[0][0])


def steps_of(records):
    return [record for record in records if record["type"] == "step"]


def test_the_table_holds_the_sums_and_ends_of_the_run(arms, run):
    records = steps_of(arms[0][1])
    table = dict(report.columns(run))
    tokens = np.sum([record["tokens_K"] for record in records], axis=0)
    assert table["domain"] == NAMES
    assert table["tokens"] == [f"{t:,}" for t in tokens]
    assert table["prior"] == [f"{p:.2%}" for p in PRIOR]
    assert table["weight now"] == [f"{w:.2%}" for w in records[-1]["weights_K"]]
    assert table["epochs"] == [f"{e:.2f}" for e in records[-1]["epochs_C"]]
    first = [next(r["loss_K"][k] for r in records if r["loss_K"][k] is not None) for k in range(len(NAMES))]
    assert table["loss first"] == [f"{value:.3f}" for value in first]


def test_under_caps_the_table_says_when_a_domain_runs_out(tmp_path):
    """The present weights are .5 .3 .2: the third domain has 1,600 samples at most, the others have plenty."""
    caps = [10**6, 10**6, 1600]
    kwargs = {"names": ["a", "b", "c"], "prior": np.array([0.5, 0.3, 0.2]), "steps": 100, "adaptive": False}
    last = steps_of(make_run(tmp_path, **kwargs, planned=400, caps=caps))[-1]
    table = dict(report.columns(read_run(tmp_path)))
    drawn = np.array(last["epochs_C"]) * [15000, 9000, 6000]
    samples = (1600 - drawn[2]) / 0.2
    assert table["runs out"] == ["–", "–", f"{100 + int(np.ceil(samples / 32))}"]
    rest = 300 * 32 - samples  # shared by the two others, 5 to 3
    more = np.array([0.5 * samples + rest * 5 / 8, 0.3 * samples + rest * 3 / 8, 0.2 * samples])
    assert table["at end"] == [f"{e:.2f}" for e in (drawn + more) / [15000, 9000, 6000]]
    make_run(tmp_path, **kwargs)
    assert not {"runs out", "at end"} & set(dict(report.columns(read_run(tmp_path))))  # no caps, and nothing left


def test_the_last_loss_is_a_token_mean_of_the_last_twentieth(arms, run):
    tail = steps_of(arms[0][1])[-6:]  # 120 intervals
    for k in range(len(NAMES)):
        seen = [(r["loss_K"][k], r["tokens_K"][k]) for r in tail if r["loss_K"][k] is not None]
        expected = sum(loss * tokens for loss, tokens in seen) / sum(tokens for _, tokens in seen)
        assert run.last_loss_K()[k] == pytest.approx(expected, rel=1e-12)


def test_absent_domains_are_nan_and_fall_back_to_the_last_sight(tmp_path):
    make_run(tmp_path, prior=np.array([0.7, 0.3, 0.0]), names=["a", "b", "never"], steps=40, adaptive=False)
    path = tmp_path / "ado" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in steps_of(records):
        record["counts_K"][2], record["tokens_K"][2], record["loss_K"][2] = 0, 0, None
    seen = steps_of(records)[3]["loss_K"][1]
    for record in steps_of(records)[4:]:
        record["tokens_K"][1], record["loss_K"][1] = 0, None
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    made = read_run(tmp_path)
    assert np.isnan(made.first_loss_K()[2]) and np.isnan(made.last_loss_K()[2])
    assert made.last_loss_K()[1] == seen
    assert dict(report.columns(made))["last"][2] == "–"
    assert "law ε + β·n^−α" not in dict(report.columns(made))  # nothing was fitted
    figures.overview(made, None)


def test_laws_and_forecast_are_those_of_the_last_accepted_fit(arms, run):
    fits = [record for record in arms[0][1] if record["type"] == "fit"]
    last_ok = [max(f["step"] for f in fits if f["ok_K"][k]) for k in range(len(NAMES))]
    assert run.laws().step_K.tolist() == last_ok
    chosen = [next(f for f in fits if f["step"] == step) for step in last_ok]
    n_K = np.sum([r["counts_K"] for r in steps_of(arms[0][1])], axis=0)
    for k, fit in enumerate(chosen):
        expected = np.exp(fit["log_epsilon_K"][k]) + np.exp(fit["log_beta_K"][k]) * (2 * n_K[k]) ** -fit["alpha_K"][k]
        assert report.forecast_K(run)[k] == pytest.approx(expected, rel=1e-12)


def test_a_domain_whose_last_fit_failed_says_why_and_keeps_its_law(tmp_path):
    records = make_run(tmp_path, steps=300)
    for record in records:
        if record["type"] == "fit" and record["step"] >= 200:
            record["ok_K"][0], record["reason_K"][0], record["alpha_K"][0] = False, "too few points", None
        if record["type"] == "fit":
            record["ok_K"][1], record["reason_K"][1] = False, "not finite"
    (tmp_path / "ado" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made = read_run(tmp_path)
    note, law = dict(report.columns(made))["last fit"], dict(report.columns(made))["law ε + β·n^−α"]
    assert note[0] == "law of step 150 kept: too few points" and law[0] != "–"
    assert note[1] == "no law yet: not finite" and law[1] == "–"
    assert np.isnan(report.forecast_K(made)[1])


def test_a_failed_refit_is_counted_and_changes_no_law(tmp_path):
    records = make_run(tmp_path, steps=300)
    before = read_run(tmp_path)
    records.append({"type": "fit", "step": 300, "applies_at_block": 310, "failed": "the process died", "seconds": 0.1,
                    "wait_seconds": 0.0})  # fmt: skip
    (tmp_path / "ado" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    after = read_run(tmp_path)
    np.testing.assert_array_equal(after.laws().law_Kx3, before.laws().law_Kx3)
    assert len(after.fits) == len(before.fits) + 1
    figures.figure_speed(after)
    figures.figure_diagnostics(after, None)


@pytest.mark.parametrize("own_n", [True, False])
def test_n_is_counted_as_the_run_counted_it(tmp_path, own_n):
    records = make_run(tmp_path, steps=50, config={"own_n": own_n})
    counts = np.cumsum([record["counts_K"] for record in steps_of(records)], axis=0)
    expected = counts if own_n else np.repeat(counts.sum(1, keepdims=True), len(NAMES), 1)
    np.testing.assert_array_equal(read_run(tmp_path).n_SxK, np.maximum(expected, 1))


@pytest.mark.parametrize("most", [1, 7, 119, 120, 500])
def test_thinning_keeps_every_sum_and_the_end(run, most):
    thin = run.thinned(most)
    assert len(thin.step_S) == min(most, len(run.step_S))
    np.testing.assert_array_equal(thin.counts_SxK.sum(0), run.counts_SxK.sum(0))
    np.testing.assert_array_equal(thin.weights_SxK[-1], run.weights_SxK[-1])
    everywhere = token_mean(run.loss_SxK, run.tokens_SxK)
    np.testing.assert_allclose(token_mean(thin.loss_SxK, thin.tokens_SxK), everywhere, rtol=1e-12)


def test_epochs_of_a_group_are_of_its_prefixes_with_a_share_together(tmp_path):
    records = make_run(tmp_path, steps=20, names=["a", "b"], prior=np.array([0.5, 0.5]), adaptive=False)
    records[0] |= {"domain_of_C": [0, 1, 0, 1], "lengths_C": [100, 200, 10, 500], "share_C": [0.9, 1, 0.1, 0]}
    records[0] |= {"caps_C": [25, 1000, 30, 500], "num_blocks": 100}
    for record in steps_of(records):
        record["epochs_C"] = [0.25, 0.5, 3.0, 0.0]
    (tmp_path / "ado" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made = read_run(tmp_path)
    assert made.supply.drawn_K.tolist() == [55, 100] and made.supply.length_K.tolist() == [110, 200]
    assert made.supply.cap_K.tolist() == [55, 1000]
    table = dict(report.columns(made))
    assert table["epochs"] == ["0.50", "0.50"] and table["runs out"][0] == "at its cap"


class Page(html.parser.HTMLParser):
    """Collects what a page loads, its headings and its table cells."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.headings, self.cells, self._in = [], [], 0, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._in = tag
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.cells += tag == "td"

    def handle_data(self, data):
        if self._in == "h2":
            self.headings.append(data)


def test_the_command_writes_a_picture_and_a_page_that_needs_nothing_else(arms, tmp_path, capsys):
    line = ["report", str(arms[0][0]), "--compare", str(arms[1][0]), "--out", str(tmp_path / "out")]
    assert cli.main(line) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().splitlines()[-1].startswith(f"report: {tmp_path / 'out' / 'report.html'}")
    assert all(name in printed for name in NAMES) and "adaptive minus static" in printed
    png = (tmp_path / "out" / "report.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) < 300_000
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert len(page.sources) == 6
    for source in page.sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(data).decode()
        assert not [link for link in re.findall(r'href="([^"]*)"', svg) if not link.startswith(("#", "data:"))]
    assert page.headings == ["Mixture", "Weights against the prior", "Losses and their laws", "Learning speed",
                             "Against static", "Diagnostics", "Options"]  # fmt: skip
    assert page.cells == len(NAMES) * 10


def test_credit_is_shown_where_the_profile_uses_it(tmp_path):
    make_run(tmp_path / "a", steps=300, config={"profile": "released"})
    make_run(tmp_path / "b", steps=300)
    assert figures.figure_credit(read_run(tmp_path / "a")) is not None
    assert figures.figure_credit(read_run(tmp_path / "b")) is None


def test_the_picture_draws_the_weights_and_the_measured_losses(run):
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.overview(run, None)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    area = panels["Mixture over the run (dashes: prior)"].collections[0].get_paths()[0].vertices
    at_end = area[np.isclose(area[:, 0], 600)][:, 1]
    assert at_end.max() == pytest.approx(run.weights_SxK[-1, 0], abs=1e-9)  # python lies at the bottom
    dots = panels["licences"].lines[0].get_xydata()
    np.testing.assert_allclose(dots[:, 1], run.loss_SxK[:, 7])


def test_sixty_domains_and_odd_names_make_a_report(tmp_path):
    names = [f"<b>{i}&$\\oops{{$" for i in range(60)]
    make_run(tmp_path, names=names, prior=np.full(60, 1 / 60), steps=300)
    assert cli.main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "ado" / "report.html").read_text()
    assert "<b>" not in text and "&lt;b&gt;59&amp;" in text
    assert "The 24 largest domains are shown" in text


def test_the_comparison_counts_and_warns(arms, run):
    static = read_run(arms[1][0])
    text = report.comparison_text(run, static)
    gap_K = run.validation_VxK[-1] - static.validation_VxK[-1]
    assert "validation loss after 600 steps" in text[0] and f"{gap_K.mean():+.4f} nats" in text[0]
    assert f"lower in {(gap_K < 0).sum()} of 8" in text[0]
    assert "one pair of runs" in text[1]
    assert len(text) == 2  # same seed, same number of samples: nothing else differs


def test_runs_that_differ_in_more_than_the_mixture_are_called_so(tmp_path, run):
    make_run(tmp_path, steps=300, adaptive=False, config={"seed": 9})
    other = read_run(tmp_path)
    text = report.comparison_text(run, other)[-1]
    assert "seed is 1234 here and 9 there" in text and "samples were measured" in text


def test_without_common_validation_the_training_loss_is_compared(tmp_path, run):
    make_run(tmp_path, steps=100, adaptive=False)
    what, ours_K, _ = report.final_losses(run, read_run(tmp_path))
    assert what == "training loss at the end"
    np.testing.assert_array_equal(ours_K, run.last_loss_K())


def damaged(change):
    def make(folder):
        records = make_run(folder, steps=20)
        path = folder / "ado" / "metrics.jsonl"
        path.write_text(change([json.dumps(record) for record in records]))

    return make


BAD = {
    "no directory": (lambda folder: None, "no run directory with measurements"),
    "empty file": (damaged(lambda lines: ""), "does not begin with"),
    "no header": (damaged(lambda lines: "\n".join(lines[1:])), "does not begin with"),
    "other version": (damaged(lambda lines: "\n".join(lines).replace('"version": 1', '"version": 7')), "version 7"),
    "no interval": (damaged(lambda lines: lines[0]), "no measured interval yet"),
    "damaged": (damaged(lambda lines: "\n".join([lines[0], "{oops", *lines[1:]])), "line 2 of"),
    "missing key": (damaged(lambda lines: "\n".join(lines).replace("weights_K", "w")), "lacks something"),
    "unknown option": (damaged(lambda lines: "\n".join(lines).replace('"policy"', '"polcy"')), "polcy"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_sentence(tmp_path, capsys, case):
    make, words = BAD[case]
    make(tmp_path / "run")
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_half_written_last_line_is_ignored(tmp_path):
    make_run(tmp_path, steps=20)
    whole = read_run(tmp_path)
    with open(tmp_path / "ado" / "metrics.jsonl", "a") as file:
        file.write('{"type": "step", "st')
    np.testing.assert_array_equal(read_run(tmp_path).counts_SxK, whole.counts_SxK)


def test_runs_on_other_domains_are_not_compared(tmp_path, run):
    make_run(tmp_path, names=["a", "b"], prior=np.array([0.5, 0.5]), steps=20, adaptive=False)
    with pytest.raises(UserError, match="compare runs on the same data"):
        report.comparable(run, read_run(tmp_path))
