"""The conductor in one process: when things happen, what decides the rows, and what a resume brings back."""

import dataclasses
import json

import numpy as np
import pytest

from ado_megatron.errors import SidecarError, UserError
from ado_megatron.measure.metrics import read_metrics
from ado_megatron.mixer import rank_zero
from ado_megatron.mixer.sidecar import read_sidecar
from ado_megatron.policy import make_policy
from ado_megatron.scaling_law import fit_process as fitter
from ado_megatron.scaling_law.history import LossHistory
from ado_megatron.scaling_law.smoothing import fit_history
from tests.kit.mixing import (
    CONFIG,
    LENGTHS,
    NAMES,
    TOKENS,
    FitInPlace,
    Run,
    assert_nothing_repeated_or_skipped,
    config,
    domains,
    loss_of,
    stop_fits,
)


@pytest.fixture(autouse=True)
def _fits(request, monkeypatch):
    if "real_fits" not in request.keywords:
        monkeypatch.setattr(rank_zero, "Fit", FitInPlace)
    yield
    stop_fits()


def records(path, kind):
    return [r for r in read_metrics(path / "ado" / "metrics.jsonl") if r["type"] == kind]


def reference_rows(conf, steps, batch):
    """The released order of things, written out: fit after a step, use the laws from the next batch on."""
    doms, conf = domains(conf), conf.resolved()
    policy, laws, rows = make_policy(conf, doms.prior_K), None, []
    state, history = policy.initial_state(), LossHistory(len(NAMES), conf)
    credit_C, n_K = np.zeros(len(NAMES)), np.zeros(len(NAMES), dtype=np.int64)
    from ado_megatron.stream.schedule import apportion

    for t in range(steps):
        counts_K, credit_C = apportion(state.weights_K, batch, credit_C)
        rows.append(counts_K)
        sums_K = [TOKENS * sum(loss_of(k, j) for j in range(n_K[k], n_K[k] + c)) for k, c in enumerate(counts_K)]
        n_K = n_K + counts_K
        history.append(t, n_K, counts_K, np.array(sums_K), counts_K * float(TOKENS))
        if conf.refit_at(t):
            laws = fit_history(history.snapshot(t + 1), conf).merged(laws)
        state = policy.step(state, laws, counts_K)
    return np.array(rows)


@pytest.mark.parametrize("profile", ["released", "ado"])
def test_without_lag_the_rows_are_those_of_the_synchronous_loop(tmp_path, profile):
    conf = config(fit_lag=0, profile=profile, smoothing="none" if profile == "released" else None)
    run = Run(tmp_path, conf, steps=70).start().train(70)
    rows = run.rows()
    np.testing.assert_array_equal(rows, reference_rows(conf, 70, 16))
    assert (rows[0] != rows[-1]).any()  # and something happened


def test_with_lag_the_laws_apply_at_the_block_that_was_announced(tmp_path):
    run = Run(tmp_path, config(fit_lag=7), steps=70).start().train(70)
    fits = records(tmp_path, "fit")
    assert [f["applies_at_block"] for f in fits] == [28, 48, 68]
    rows = run.rows()
    prior = 16 * np.array([0.5, 0.3, 0.2])
    off_S = np.abs(rows.cumsum(0) - prior * np.arange(1, 71)[:, None]).max(1)
    assert off_S[:28].max() < 1 < off_S[28:32].max()  # the prior until then, and not after


@pytest.mark.real_fits
@pytest.mark.parametrize("delay", [0.0, 0.6])
def test_the_rows_do_not_depend_on_how_long_a_fit_takes(tmp_path, monkeypatch, delay):
    quick = Run(tmp_path / "a", steps=60).start().train(60)

    class SlowFit(fitter.Fit):
        def result(self, deadline):
            import time

            time.sleep(delay)
            return super().result(deadline)

    monkeypatch.setattr(rank_zero, "Fit", SlowFit)
    slow = Run(tmp_path / "b", steps=60).start().train(60)
    np.testing.assert_array_equal(quick.rows(), slow.rows())
    assert quick.stream == slow.stream


@pytest.mark.real_fits
def test_a_wait_for_a_late_fit_is_logged(tmp_path, monkeypatch):
    class LateFit(fitter.Fit):
        def result(self, deadline):
            return dataclasses.replace(super().result(deadline), waited=12.3)

    monkeypatch.setattr(rank_zero, "Fit", LateFit)
    run = Run(tmp_path, steps=40).start().train(40)
    assert run.messages[-1] == "ado: the training waited 12.3 s for the fit of block 20"
    assert records(tmp_path, "fit")[0]["wait_seconds"] == 12.3


@pytest.mark.real_fits
def test_a_failed_fit_leaves_the_old_laws_and_says_why(tmp_path, monkeypatch):
    class DyingFit(fitter.Fit):
        def result(self, deadline):
            self._process.kill()
            return super().result(deadline)

    run = Run(tmp_path, steps=100).start().train(45)
    laws = run.mixer.rank_zero.planner.laws
    monkeypatch.setattr(rank_zero, "Fit", DyingFit)
    run.train(100)
    assert run.mixer.rank_zero.planner.laws is laws
    said = "the fit at block 60 failed, the old laws stay in force: its process ended with status -9"
    assert said in "".join(run.messages)
    assert "status -9" in records(tmp_path, "fit")[-1]["failed"]


def test_metrics_hold_what_was_drawn_and_measured(tmp_path):
    run = Run(tmp_path, steps=50).start().train(50)
    run.mixer.close()
    lines = records(tmp_path, "step")
    assert [line["step"] for line in lines] == list(range(5, 51, 5))
    line = lines[3]
    part = run.stream[15 * 16 : 20 * 16]
    assert line["counts_K"] == [sum(c == k for c, _ in part) for k in range(3)]
    assert line["tokens_K"] == [TOKENS * n for n in line["counts_K"]]
    mean = [np.mean([loss_of(c, j) for c, j in part if c == k]) for k in range(3)]
    np.testing.assert_allclose(line["loss_K"], mean, rtol=1e-12)
    assert line["epochs_C"] == [sum(c == k for c, _ in run.stream[: 20 * 16]) / LENGTHS[k] for k in range(3)]
    header = records(tmp_path, "run")[0]
    assert header["domains"] == list(NAMES) and header["prior_K"] == [0.5, 0.3, 0.2]
    assert all("NaN" not in line for line in (tmp_path / "ado" / "metrics.jsonl").read_text().splitlines())


def without_times(path):
    times = ("seconds", "wait_seconds", "time")
    return [{k: v for k, v in r.items() if k not in times} for r in read_metrics(path / "ado" / "metrics.jsonl")]


@pytest.mark.parametrize("stop", [1, 20, 21, 22, 23, 37, 41, 63])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, stop):
    """Stops before, at and after cuts; with a lag of 9, at 21 … 29 and 41 … 49 a fit is under way."""
    conf = config(fit_lag=9)
    whole = Run(tmp_path / "whole", conf, steps=80).start().train(stop)
    whole.save(tmp_path / "whole.ado")  # a checkpoint ends a logging interval: the same in both
    whole.train(80)
    whole.mixer.close()

    first = Run(tmp_path / "parts", conf, steps=80).start().train(stop)
    first.save(tmp_path / "s.ado")
    first.train(min(stop + 13, 80))  # goes on past the checkpoint, and is lost
    second = Run(tmp_path / "parts", conf, steps=80).start(tmp_path / "s.ado").train(80)
    second.mixer.close()
    assert whole.stream == first.stream[: stop * 16] + second.stream
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "parts")
    whole.save(tmp_path / "a.ado"), second.save(tmp_path / "b.ado")
    assert (tmp_path / "a.ado").read_bytes() == (tmp_path / "b.ado").read_bytes()


def test_a_resume_may_change_the_workers(tmp_path):
    conf = config(fit_lag=12)
    whole = Run(tmp_path / "w", conf, steps=60).start().train(60)
    first = Run(tmp_path / "p", conf, steps=60).start().train(25)
    first.save(tmp_path / "s.ado")
    second = Run(tmp_path / "p", conf, steps=60, loader={"num_workers": 4, "micro_batch": 4}).start(tmp_path / "s.ado")
    assert second.mixer.lookahead == 4
    assert whole.stream == first.stream + second.train(60).stream


def test_in_shadow_the_prior_decides_and_the_policy_is_logged(tmp_path):
    static = Run(tmp_path / "static", config(policy="static"), steps=60).start().train(60)
    shadow = Run(tmp_path / "shadow", config(shadow=True), steps=60).start().train(60)
    assert shadow.stream == static.stream
    shadow.mixer.close()
    line = records(tmp_path / "shadow", "step")[-1]
    assert line["weights_K"] == [0.5, 0.3, 0.2]
    assert np.abs(np.subtract(line["shadow_weights_K"], line["weights_K"])).max() > 0.02
    assert len(records(tmp_path / "shadow", "fit")) == 2
    assert records(tmp_path / "static", "fit") == []


def test_measure_draws_as_static_does_and_fits_laws(tmp_path):
    static = Run(tmp_path / "static", config(policy="static"), steps=60).start().train(60)
    measured = Run(tmp_path / "measured", config(policy=None), steps=60).start().train(60)
    assert measured.mixer.config.value("policy") == "measure"
    assert measured.stream == static.stream
    measured.mixer.close()
    assert len(records(tmp_path / "measured", "fit")) == 2
    assert records(tmp_path / "measured", "step")[-1]["weights_K"] == [0.5, 0.3, 0.2]


@pytest.mark.parametrize(
    ("before", "after"),
    [({"shadow": True}, {}), ({}, {"shadow": True}), ({"policy": "static"}, {}), ({}, {"policy": "static"})],
)
def test_switching_in_the_middle_repeats_and_skips_nothing(tmp_path, before, after):
    first = Run(tmp_path, config(**before), steps=120).start().train(55)
    first.save(tmp_path / "s.ado")
    second = Run(tmp_path, config(**after), steps=120).start(tmp_path / "s.ado").train(120)
    assert "goes on with other options" in second.messages[0]
    assert_nothing_repeated_or_skipped(first.stream + second.stream)
    shares = np.bincount([c for c, _ in second.stream[-160:]], minlength=3) / 160
    stays_at_prior = np.abs(shares - [0.5, 0.3, 0.2]).max() < 0.02
    assert stays_at_prior == bool(after)


def test_leaving_shadow_takes_effect_at_once(tmp_path):
    first = Run(tmp_path, config(shadow=True), steps=120).start().train(55)
    first.save(tmp_path / "s.ado")
    second = Run(tmp_path, CONFIG, steps=120).start(tmp_path / "s.ado")
    weights = second.mixer.weights_K(55 * 16)
    np.testing.assert_allclose(weights, first.mixer.rank_zero.planner.shadow_K(55), rtol=1e-12)


def test_a_replayed_step_counts_once_and_a_skipped_one_not(tmp_path):
    plain = Run(tmp_path / "a", steps=60).start().train(60)
    replayed = Run(tmp_path / "b", steps=60).start().train(60, replay={3, 20, 33})
    assert plain.stream == replayed.stream
    np.testing.assert_array_equal(plain.rows(), replayed.rows())
    skipped = Run(tmp_path / "c", steps=20).start().train(20, skip={6})
    skipped.mixer.close()
    tokens = [sum(line["tokens_K"]) for line in records(tmp_path / "c", "step")]
    assert tokens == [5 * 16 * TOKENS, 4 * 16 * TOKENS, 5 * 16 * TOKENS, 5 * 16 * TOKENS]


def test_a_batch_ramp_keeps_the_stream_and_resumes_inside_a_block(tmp_path):
    sizes = [4] * 30 + [8] * 30 + [16] * 40
    whole = Run(tmp_path / "w", steps=100, sizes=sizes).start().train(100)
    assert_nothing_repeated_or_skipped(whole.stream)
    for stop in (13, 50):
        first = Run(tmp_path / "p", steps=100, sizes=sizes).start().train(stop)
        first.save(tmp_path / "s.ado")
        second = Run(tmp_path / "p", steps=100, sizes=sizes).start(tmp_path / "s.ado").train(100)
        assert first.stream + second.stream == whole.stream
    halfway = Run(tmp_path / "p", config(shadow=True), steps=100, sizes=sizes).start(tmp_path / "s.ado").train(100)
    assert_nothing_repeated_or_skipped(first.stream + halfway.stream)


def test_groups_act_on_domains_and_lay_out_prefixes(tmp_path):
    (tmp_path / "groups.json").write_text(json.dumps({"text": ["code", "wiki"], "maths": "maths"}))
    conf = config(groups=str(tmp_path / "groups.json"))
    run = Run(tmp_path, conf, doms=domains(conf), steps=80).start().train(80)
    run.mixer.close()
    line = records(tmp_path, "step")[-1]
    assert len(line["weights_K"]) == 2 and len(line["epochs_C"]) == 3
    drawn_C = np.bincount([c for c, _ in run.stream], minlength=3)
    assert drawn_C[0] / drawn_C[1] == pytest.approx(5 / 3, rel=0.02)  # the user's proportions inside the domain


def test_caps_hold_and_the_others_take_over(tmp_path):
    conf = config(max_epochs="maths=1,wiki=1")
    run = Run(tmp_path, conf, steps=80).start().train(80)
    counts = np.bincount([c for c, _ in run.stream], minlength=3)
    assert counts[2] == 70 and counts[1] <= 300 and counts.sum() == 80 * 16
    with pytest.raises(UserError, match="needs 3,200 samples"):
        Run(tmp_path, config(max_epochs="2"), steps=200).start()


def test_the_start_says_how_often_each_domain_will_be_read(tmp_path):
    run = Run(tmp_path, config(max_epochs="maths=2"), steps=80).start()  # 1280 samples, at most 140 of them maths
    assert run.messages == [
        "ado: under the present weights, code: 0.71 epochs at the end of the run; does not run out",
        "ado: under the present weights, wiki: 1.43 epochs at the end of the run; does not run out",
        "ado: under the present weights, maths: 2.00 epochs at the end of the run; runs out after 700 more samples of "
        "the run",
    ]


def test_the_lead_is_checked_against_the_loader(tmp_path):
    with pytest.raises(UserError, match="--ado-lead 2 is too small.*hold samples of 6 blocks"):
        Run(tmp_path, config(lead=2), dp=2, loader={"num_workers": 4, "prefetch_factor": 2, "micro_batch": 4})


def change_one(tmp_path, **changes):
    first = Run(tmp_path, steps=40).start().train(10)
    first.save(tmp_path / "s.ado")
    conf = config(**changes.pop("conf", {}))
    kwargs = {"steps": 40, "doms": domains(conf, **changes.pop("doms", {}))} | changes
    return Run(tmp_path, conf, **kwargs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conf": {"seed": 5}}, "seed 1234, this one has 5"),
        ({"batch": 32}, "global batch 16, this one has 32"),
        ({"conf": {"huber_delta": 0.5}}, "--ado-huber-delta 0.01; resume with the same, or say --ado-accept-changes"),
        ({"doms": {"lengths": (1000, 300, 71)}}, "maths_text_document of 70 samples, now 71"),
        ({"doms": {"names": ("code", "wiki", "law")}}, "maths_text_document, which is not in this blend"),
    ],
)
def test_a_sidecar_of_another_run_is_refused(tmp_path, changes, words):
    with pytest.raises(SidecarError, match=words):
        change_one(tmp_path, **changes).start(tmp_path / "s.ado")


def test_a_sidecar_of_another_step_is_refused(tmp_path):
    run = change_one(tmp_path)
    run.mixer.load(tmp_path / "s.ado")
    with pytest.raises(SidecarError, match="stands at 160 samples but the checkpoint at 176"):
        run.mixer.start(176, step=11)


@pytest.mark.parametrize(
    "doms",
    [
        {"names": (*NAMES, "law"), "lengths": (*LENGTHS, 40), "weights": (5.0, 3.0, 2.0, 1.0)},
        {"names": ("wiki", "code"), "lengths": (300, 1000), "weights": (1.0, 1.0)},
        {"lengths": (1000, 300, 90)},
    ],
    ids=["added", "removed and reordered", "grown"],
)
def test_on_demand_the_data_may_change_and_the_others_keep_their_positions(tmp_path, doms):
    first = Run(tmp_path, steps=60).start().train(25)
    first.save(tmp_path / "s.ado")
    conf = config(accept_changes=True)
    second = Run(tmp_path, conf, doms=domains(conf, **doms), steps=60).start(tmp_path / "s.ado").train(60)
    names, lengths = doms.get("names", NAMES), doms.get("lengths", LENGTHS)
    for k, name in enumerate(names):
        before = [j for c, j in first.stream if NAMES[c : c + 1] == (name,)]
        after = sorted(j for c, j in second.stream if c == k)
        goes_on = name in NAMES and lengths[k] == LENGTHS[NAMES.index(name)]
        start = len(before) if goes_on else 0
        assert after == list(range(start, start + len(after)))
    # The order of a domain that stays is the same order: its samples are those of a run without the change.
    wiki = names.index("wiki")
    for j in range(60):
        assert sample_of(second, wiki, j) == sample_of(first, 1, j)
    third = Run(tmp_path, config(), doms=domains(**doms), steps=60)
    second.save(tmp_path / "s.ado")
    third.start(tmp_path / "s.ado")  # from then on the new data is the run's own
    assert not any("other options" in message for message in third.messages)


def test_a_run_begins_where_one_without_a_sidecar_ended(tmp_path):
    run = Run(tmp_path, steps=80)
    run.step, run.consumed = 50, 800
    run.mixer.start(800, step=50, start_C=[400, 240, 160])
    run.train(80)
    for dataset_id, first in enumerate((400, 240, 160)):
        drawn = sorted(j for c, j in run.stream if c == dataset_id)
        assert drawn == list(range(first, first + len(drawn)))
    for consumed, words in ((800, "no sidecar of an adaptive run; start"), (801, "no multiple of the global batch 16")):
        with pytest.raises(SidecarError, match=words):
            Run(tmp_path, steps=80).mixer.start(consumed, step=50)


def test_a_resumed_run_may_be_shortened_and_lengthened(tmp_path):
    first = Run(tmp_path, steps=100).start().train(30)
    first.save(tmp_path / "s.ado")
    short = Run(tmp_path, steps=33).start(tmp_path / "s.ado").train(33)
    longer = Run(tmp_path, steps=150).start(tmp_path / "s.ado").train(150)
    assert longer.stream[:48] == short.stream
    assert_nothing_repeated_or_skipped(first.stream + longer.stream)


def sample_of(run, dataset_id, j):
    from ado_megatron.stream.permutation import permute

    schedule = run.mixer.schedule
    length = int(schedule.length_C[dataset_id])
    return permute(j % length, length, schedule.epoch_key(dataset_id, j // length))


def test_the_static_export_is_the_mixture_so_far(tmp_path):
    conf = config(export_static=str(tmp_path / "blend.txt"))
    run = Run(tmp_path, conf, steps=40).start().train(40)
    run.save(tmp_path / "s.ado")
    words = (tmp_path / "blend.txt").read_text().split()
    assert words[1::2] == [f"data/{name}_text_document" for name in NAMES]
    assert [int(w) for w in words[::2]] == np.bincount([c for c, _ in run.stream], minlength=3).tolist()
    assert not any("stock blend" in message for message in run.messages), "the first epoch was not in stock's order"


def test_the_static_export_says_what_stock_cannot_continue(tmp_path):
    """Weights 5 : 3 : 2 of 640 samples are more than the 70 of the last domain; of 300 in all they are not."""
    for steps, words in ((40, "repeats and skips samples of data/maths_text_document,"), (20, "skips nothing")):
        conf = config(export_static=str(tmp_path / "blend.txt"), policy="static")
        run = Run(tmp_path, conf, steps=steps, in_order=True).start().train(10)
        run.save(tmp_path / "s.ado")
        assert [words in message for message in run.messages if "the stock blend goes on" in message] == [True]


def test_a_dataset_of_several_epochs_is_read_as_one_order_and_counted_in_epochs(tmp_path):
    passes, origin = (1000, 300, 3 * LENGTHS[2]), {"size": 800, "weights": [["maths_text_document", 2.0]]}
    options = {"steps": 60, "in_order": True, "samples_per_pass": passes, "origin": origin}
    run = Run(tmp_path, config(max_epochs="maths=4"), **options)
    run.step, run.consumed = 20, 320
    run.mixer.start(320, step=20, start_C=[160, 96, 64])
    run.train(40).save(tmp_path / "s.ado")
    assert run.mixer.schedule.length_C.tolist() == list(passes)
    assert run.mixer.caps_C[2] == 4 * LENGTHS[2]
    drawn = run.mixer.schedule.cumulative(run.consumed)
    rows = [json.loads(line) for line in (tmp_path / "ado" / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(rows[-1]["epochs_C"], drawn / LENGTHS)
    meta, arrays = read_sidecar(tmp_path / "s.ado")
    assert meta["origin"] == origin and meta["lengths_C"] == list(LENGTHS)
    assert arrays["schedule/length_C"].tolist() == list(passes) and meta["schedule"]["in_order"]
    Run(tmp_path, config(max_epochs="maths=4"), **options).start(tmp_path / "s.ado").train(60)
    with pytest.raises(UserError, match="another length"):
        Run(tmp_path, config(max_epochs="maths=4"), steps=60, in_order=True).start(tmp_path / "s.ado")


def test_active_after_shadow_starts_where_stock_stood_with_the_laws_of_the_shadow(tmp_path):
    shadow = Run(tmp_path, config(shadow=True), steps=100, in_order=True).start().train(60)
    shadow.save(tmp_path / "s.ado")
    start_C = np.array([481, 287, 192])  # what stock drew is not to the sample what the shadow laid out
    active = Run(tmp_path, config(), steps=100, in_order=True)
    active.step, active.consumed = 60, 960
    active.mixer.load(tmp_path / "s.ado")
    active.mixer.start(960, step=60, start_C=start_C)
    np.testing.assert_allclose(active.mixer.weights_K(960), shadow.mixer.rank_zero.planner.shadow_K(60), rtol=1e-12)
    assert np.abs(active.mixer.weights_K(960) - active.mixer.domains.prior_K).max() > 1e-3, "no law was in force"
    active.train(100)
    for dataset_id, first in enumerate(start_C):
        drawn = sorted(j for c, j in active.stream if c == dataset_id)
        assert drawn == list(range(first, first + len(drawn)))
    measured_T = active.mixer.rank_zero.recorder.history.snapshot(100)["step_T"]
    assert measured_T.min() < 60, "what the shadow measured is lost"


@pytest.mark.parametrize("saved, now, refused", [(None, [1, 2, 3], False), ([1, 2, 3], [1, 2, 3], False),
                                                ([1, 2, 3], [1, 2, 4], True)])  # fmt: skip
def test_data_of_other_contents_is_refused_unless_the_state_knew_none(saved, now, refused, tmp_path):
    def known(content):
        return dataclasses.replace(domains(CONFIG), content_C=None if content is None else np.array(content))

    run = Run(tmp_path, doms=known(saved), steps=20).start().train(8)
    run.save(tmp_path / "s.ado")
    run.mixer.close()
    again = Run(tmp_path, doms=known(now), steps=20)
    if refused:
        with pytest.raises(SidecarError, match="of other contents"):
            again.start(tmp_path / "s.ado")
    else:
        again.start(tmp_path / "s.ado")
