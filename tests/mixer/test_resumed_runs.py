"""Resuming a run of the mixer: what goes on as if nothing had happened, what is refused, what changes on demand."""

import dataclasses

import numpy as np
import pytest

from ado_megatron.errors import SidecarError
from ado_megatron.measure.metrics import read_metrics
from tests.kit.mixing import (
    CONFIG,
    LENGTHS,
    NAMES,
    Run,
    assert_nothing_repeated_or_skipped,
    config,
    content_of,
    domains,
)

pytestmark = pytest.mark.usefixtures("fits_in_place")


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
    assert content_of(tmp_path / "a.ado") == content_of(tmp_path / "b.ado")


def test_a_resume_may_change_the_workers(tmp_path):
    conf = config(fit_lag=12)
    whole = Run(tmp_path / "w", conf, steps=60).start().train(60)
    first = Run(tmp_path / "p", conf, steps=60).start().train(25)
    first.save(tmp_path / "s.ado")
    second = Run(tmp_path / "p", conf, steps=60, loader={"num_workers": 4, "micro_batch": 4}).start(tmp_path / "s.ado")
    assert second.mixer.lookahead == 4
    assert whole.stream == first.stream + second.train(60).stream


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


def sample_of(run, dataset_id, j):
    from ado_megatron.stream.permutation import permute

    schedule = run.mixer.schedule
    length = int(schedule.length_C[dataset_id])
    return permute(j % length, length, schedule.epoch_key(dataset_id, j // length))


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
