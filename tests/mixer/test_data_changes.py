"""A run that goes on for longer, or shorter, or with other data than before."""

import dataclasses

import numpy as np
import pytest

from ado_megatron.blend.domains import Domains
from ado_megatron.errors import SidecarError, UserError
from ado_megatron.mixer import rank_zero
from ado_megatron.report.read import read_run
from tests.kit.mixing import LENGTHS, NAMES, config, domains
from tests.kit.steering import QuickFit, QuickRun, assert_audit_is_clean

STEPS, STOP = 60, 33


@pytest.fixture(autouse=True)
def _fits(monkeypatch):
    monkeypatch.setattr(rank_zero, "Fit", QuickFit)


def begun(tmp_path, doms=None, steps=STEPS, conf=None):
    run = QuickRun(tmp_path, conf or config(audit=True), steps, doms=doms).start().train(STOP)
    run.save(tmp_path / "s.ado")
    run.kill()
    return run


def samples(stream, k):
    return [s for ids, samples in stream for i, s in zip(ids, samples, strict=True) if i == k]


@pytest.mark.parametrize("steps", [90, 45, 38, 33])
@pytest.mark.parametrize("policy", ["ado", "static"])
def test_longer_or_shorter_keeps_every_sample_of_the_common_part(tmp_path, steps, policy):
    conf = config(policy=policy, audit=True)
    whole = QuickRun(tmp_path / "whole", conf, STEPS).start().train(STEPS)
    first = begun(tmp_path / "run", conf=conf)
    second = QuickRun(tmp_path / "run", conf, steps).start(tmp_path / "run" / "s.ado").train(steps)
    stream = first.stream + second.stream
    assert len(stream) == steps and stream[:STEPS] == whole.stream[:steps]
    second.kill()
    assert_audit_is_clean(tmp_path / "run")


def with_content(names=NAMES, lengths=LENGTHS, weights=None, content=None):
    """Domains whose files say something else each, unless `content` says otherwise."""
    weights = dict(zip(NAMES, (5.0, 3.0, 2.0), strict=True)) if weights is None else weights
    content = content or {}
    digests = [sum(map(ord, content.get(name, name))) for name in names]
    built = domains(names=names, lengths=lengths, weights=[weights.get(name, 2.0) for name in names])
    return dataclasses.replace(built, content_C=np.array(digests))


CHANGES = {
    "added": with_content((*NAMES, "law"), (*LENGTHS, 40)),
    "removed": with_content(NAMES[:2], LENGTHS[:2]),
    "grown": with_content(lengths=(1000, 300, 90)),
    "moved": with_content(("code", "encyclopedia", "maths"), content={"encyclopedia": "wiki"}),
    "added,removed": with_content(("law", "wiki", "code"), (40, 300, 1000)),
    "added,moved": with_content(("new", "maths", "law", "code"), (300, 70, 40, 1000), content={"new": "wiki"}),
}


@pytest.mark.parametrize("words", CHANGES)
def test_each_change_of_the_data_needs_its_own_word(tmp_path, words):
    begun(tmp_path, with_content())
    for given in ("", *(kind for kind in ("added", "removed", "grown", "moved") if kind not in words.split(","))):
        conf = config(audit=True, accept_data=given or None)
        run = QuickRun(tmp_path, conf, STEPS, doms=CHANGES[words])
        with pytest.raises(SidecarError, match=f"--ado-accept-data {words} accepts this change of the data and no ot"):
            run.start(tmp_path / "s.ado")
        run.kill()


@pytest.mark.parametrize("words", CHANGES)
def test_what_stays_keeps_its_position_and_what_comes_starts_at_its_first_sample(tmp_path, words):
    first, doms = begun(tmp_path, with_content()), CHANGES[words]
    second = QuickRun(tmp_path, config(audit=True, accept_data=words), STEPS, doms=doms).start(tmp_path / "s.ado")
    other = domains()  # the data as they were, read to their end
    whole = QuickRun(tmp_path / "whole", config(policy="static"), 150, doms=other).start().train(150)
    second.train(STEPS)
    second.kill()
    old_name = {"encyclopedia": "wiki", "new": "wiki"}
    for k, name in enumerate(doms.names_K):
        name = old_name.get(name, name)
        drawn = samples(second.stream, k)
        if name in NAMES and doms.lengths_C[k] == LENGTHS[NAMES.index(name)]:
            before = samples(first.stream, NAMES.index(name))
            assert before + drawn == samples(whole.stream, NAMES.index(name))[: len(before + drawn)], name
        else:
            assert sorted(drawn[: doms.lengths_C[k]]) == sorted(set(drawn[: doms.lengths_C[k]]))
    forecast = [line.split(", ")[1].split(":")[0] for line in second.messages if "epochs at the end of" in line]
    assert forecast == list(doms.names_K)
    planner = second.mixer.rank_zero.planner  # what the policy counts is what was laid out
    assert planner.state.samples_K.tolist() == planner.laid_out_C.tolist() and planner.state.step == STEPS
    assert sorted(planner._weights)[-1] == STEPS - 1
    assert_audit_is_clean(tmp_path)
    second.mixer._reduce()
    report = read_run(tmp_path)  # one file from the first step on, of the domains of now
    assert report.names_K == list(doms.names_K) and report.step_S[0] == 5 and report.step_S[-1] > STOP
    before = dict(zip(NAMES, LENGTHS, strict=True))
    for k, name in enumerate(doms.names_K):
        stays = before.get(old_name.get(name, name)) == doms.lengths_C[k]
        assert (report.counts_SxK[0, k] > 0) == stays and np.isfinite(report.loss_SxK[0, k]) == stays


def test_other_contents_are_no_growth_and_a_word_that_is_none_is_refused(tmp_path):
    begun(tmp_path, with_content())
    shorter = with_content(lengths=(1000, 300, 60))
    for doms, words in ((shorter, "removed,grown,moved,added"), (with_content(content={"wiki": "other"}), "moved")):
        run = QuickRun(tmp_path, config(audit=True, accept_data=words), STEPS, doms=doms)
        with pytest.raises(SidecarError, match="or say --ado-accept-changes to go on with what is given now$"):
            run.start(tmp_path / "s.ado")
        run.kill()
    run = QuickRun(tmp_path, config(audit=True, accept_data="shrunk"), STEPS, doms=shorter)
    with pytest.raises(UserError, match="--ado-accept-data shrunk: 'shrunk' is none of added, removed, grown, moved"):
        run.start(tmp_path / "s.ado")
    run.kill()


def test_a_word_for_the_data_accepts_no_other_option(tmp_path):
    begun(tmp_path, with_content())
    conf = config(audit=True, accept_data="added", huber_delta=0.5)
    run = QuickRun(tmp_path, conf, STEPS, doms=CHANGES["added"])
    with pytest.raises(SidecarError, match="--ado-huber-delta 0.01; the data without .*law"):
        run.start(tmp_path / "s.ado")
    run.kill()


def moved_to(folder, names=NAMES, doms=None):
    """The same datasets in another folder each."""
    doms = doms or with_content(names)
    prefixes = tuple(f"{folder}/{name}_text_document" for name in names)
    return dataclasses.replace(doms, prefixes_C=prefixes)


def test_another_folder_needs_its_word_and_changes_no_sample(tmp_path):
    conf = config(audit=True)
    whole = QuickRun(tmp_path / "whole", conf, STEPS, doms=with_content()).start().train(STEPS)
    first = begun(tmp_path / "run", with_content())
    run = QuickRun(tmp_path / "run", conf, STEPS, doms=moved_to("disk"))
    sentence = (
        "written with the data data/code_text_document, now at disk/code_text_document, data/wiki_text_document, now "
        ".*; resume with the same, .*--ado-accept-data moved accepts"
    )
    with pytest.raises(SidecarError, match=sentence):
        run.start(tmp_path / "run" / "s.ado")
    run.kill()
    moved = QuickRun(tmp_path / "run", config(audit=True, accept_data="moved"), STEPS, doms=moved_to("disk"))
    moved.start(tmp_path / "run" / "s.ado").train(STEPS)
    moved.kill()
    assert first.stream + moved.stream == whole.stream
    assert_audit_is_clean(tmp_path / "run")


def test_another_word_for_the_same_place_is_no_move(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    begun(tmp_path / "run", with_content())
    for folder in (tmp_path / "data", "link", "./data"):
        run = QuickRun(tmp_path / "run", config(), STEPS, doms=moved_to(folder))
        run.start(tmp_path / "run" / "s.ado").train(STEPS).kill()
    monkeypatch.chdir("/")  # the whole project elsewhere: the words are the same
    QuickRun(tmp_path / "run", config(), STEPS, doms=with_content()).start(tmp_path / "run" / "s.ado").kill()


def test_of_datasets_with_one_name_each_keeps_its_own_position(tmp_path):
    """The first of them is taken away, so by name the second would be the first."""
    doms = Domains.build(["a/x", "b/x", "c/x"], [1.0] * 3, [90, 90, 120], config(), content_C=[1, 2, 3])
    first = begun(tmp_path, doms)
    left = Domains.build(["b/x", "c/x"], [1.0] * 2, [90, 120], config(), content_C=[2, 3])
    second = QuickRun(tmp_path, config(audit=True, accept_data="removed"), STEPS, doms=left)
    second.start(tmp_path / "s.ado").train(STEPS)
    second.kill()
    for k, length in enumerate((90, 120)):  # the end of an epoch lies behind the change
        before, drawn = samples(first.stream, k + 1), samples(second.stream, k)
        assert len(before) < length < len(before + drawn)
        assert sorted((before + drawn)[:length]) == list(range(length))
    assert_audit_is_clean(tmp_path)


def test_a_dataset_that_takes_the_old_name_of_one_that_was_moved_has_its_own_order(tmp_path):
    begun(tmp_path, with_content())
    renamed = with_content(("code", "encyclopedia", "maths"), content={"encyclopedia": "wiki"})
    second = QuickRun(tmp_path, config(audit=True, accept_data="moved"), STEPS, doms=renamed)
    second.start(tmp_path / "s.ado").train(STOP + 5)
    second.save(tmp_path / "t.ado")
    second.kill()
    both = with_content(("code", "encyclopedia", "maths", "wiki"), (*LENGTHS, 50),
                        content={"encyclopedia": "wiki", "wiki": "another"})  # fmt: skip
    third = QuickRun(tmp_path, config(audit=True, accept_data="added"), STEPS, doms=both)
    third.start(tmp_path / "t.ado").train(STEPS)
    third.kill()
    assert len(set(third.mixer.schedule.stream_id_C.tolist())) == 4
    assert_audit_is_clean(tmp_path)


def test_pins_hold_on_with_other_data(tmp_path):
    run = QuickRun(tmp_path, config(), STEPS, doms=with_content()).start().train(10)
    assert "entry" in run.ask(pins={"code": 0.2}, floor={"maths": 0.1}, hold=True)
    run.train(STOP).save(tmp_path / "s.ado")
    run.kill()
    second = QuickRun(tmp_path, config(accept_data="added,removed"), STEPS, doms=CHANGES["added,removed"])
    second.start(tmp_path / "s.ado").train(STEPS)
    second.kill()
    planner = second.mixer.rank_zero.planner
    said = "ado: not in this blend, so what was set of them by hand does not count: maths"
    assert said in second.messages
    law, wiki, code = planner.weights_K(STEPS - 1)
    assert code == pytest.approx(0.2) and law + wiki == pytest.approx(0.8)
