"""`ado-megatron whatif` on the directory of a run: what it says, what it refuses, and that it touches nothing."""

import dataclasses
import json

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.mixer import rank_zero
from ado_megatron.whatif.command import answer
from ado_megatron.whatif.course import lay_out
from ado_megatron.whatif.situation import Situation
from tests.kit import mixing
from tests.kit.mixing import LENGTHS, NAMES, Run, config, domains, loss_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """200 steps of 16 samples are planned; the checkpoint stands at 100."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_zero, "Fit", mixing.FitInPlace)
        folder = tmp_path_factory.mktemp("asked")
        run = Run(folder, steps=200).start().train(60)
        run.save(folder / "ado" / "state_60.ado")
        run.train(100)
        run.save(folder / "ado" / "state_100.ado")
        run.mixer.close()
        mixing.stop_fits()
    return folder


def test_the_situation_is_that_of_the_newest_checkpoint(folder):
    situation = Situation.of_run(folder)
    assert situation.step == 100 and situation.num_blocks == 200 and situation.domains.names_K == NAMES
    assert situation.first_block > 100 and situation.laws.ok_K.all()
    np.testing.assert_allclose(situation.domains.prior_K, [0.5, 0.3, 0.2])


def test_the_course_as_it_goes_on_is_what_the_run_would_lay_out(folder):
    """Of a static run to the sample; an adaptive one has other laws by then."""
    situation = Situation.of_run(folder)
    static = dataclasses.replace(situation, config=dataclasses.replace(situation.config, policy="static"))
    course = lay_out(static, 200)
    left = (200 - situation.first_block) * 16
    np.testing.assert_allclose(course.share_K * left, np.array([0.5, 0.3, 0.2]) * left, atol=2)
    assert course.drawn_K.sum() == 200 * 16


def test_a_pinned_share_is_drawn_and_what_the_laws_say_of_it_is_near_the_truth(folder):
    found = answer(Situation.of_run(folder), {"pins": {"wiki": 0.5}})
    left = (200 - found.now.first) * 16
    assert found.other.share_K[1] == pytest.approx(0.5, abs=2 / left)
    now, other = found.now.share_K, found.other.share_K
    assert other[0] / other[2] == pytest.approx(now[0] / now[2], rel=0.1)  # the others keep their proportions
    drawn_2xK = np.array([found.now.drawn_K, found.other.drawn_K]).astype(int)
    truth_K = np.diff([[loss_of(k, drawn_K[k]) for k in range(3)] for drawn_K in drawn_2xK.tolist()], axis=0)[0]
    outlook = found.outlook
    assert (np.abs(outlook.difference_K - truth_K) < 2 * outlook.difference_error_K).all()
    assert outlook.difference_K[1] < 0 < outlook.difference_K[0]
    assert outlook.target_difference == pytest.approx(np.array([0.5, 0.3, 0.2]) @ outlook.difference_K)


def test_the_words(folder, capsys):
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert cli.main(["whatif", str(folder), "--set", "wiki=60%", "--set", "maths=.1"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[1] == "proposal: wiki: pin 0.6 (was none), maths: pin 0.1 (was none)"
    assert [line.split()[0] for line in text.splitlines()[4:7]] == list(NAMES)
    assert "target loss " in text and "as proposed" in text and "95 %" in text
    assert "extrapolation: shares that this run has never seen: " in text and "wiki 60.0%" in text
    assert "was not measured in this run (--ado-transfer estimate does)" in text
    assert before == {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_json(folder, capsys):
    assert cli.main(["whatif", str(folder), "--static", "--until", "180", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["what"] == {"policy": "static"} and values["until_block"] == 180
    assert values["names_K"] == list(NAMES) and len(values["difference_error_K"]) == 3
    assert values["now"]["share_K"] != values["proposal"]["share_K"]
    np.testing.assert_allclose(values["proposal"]["share_K"], [0.5, 0.3, 0.2], atol=0.01)


@pytest.mark.parametrize("asked", [["--policy", "plan"], ["--hold"], ["--target", "maths=1"], ["--floor", "maths=.3"],
                                   ["--set", "wiki=+10%"]])  # fmt: skip
def test_other_proposals_have_an_answer(folder, capsys, asked):
    assert cli.main(["whatif", str(folder), *asked]) == 0
    assert "target loss" in capsys.readouterr().out


def test_caps_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rank_zero, "Fit", mixing.FitInPlace)
    run = Run(tmp_path, config(max_epochs="maths=9"), steps=200).start().train(60)  # 630 samples of it
    run.save(tmp_path / "ado" / "state_60.ado")
    run.mixer.close()
    mixing.stop_fits()
    assert cli.main(["whatif", str(tmp_path), "--set", "maths=.5"]) == 0
    text = capsys.readouterr().out
    assert "caps: maths comes to its cap of 9.00 epochs at step " in text and "the proposal asks for " in text
    assert "extrapolation: more than 4 epochs of maths" in text and LENGTHS[2] == 70


def test_a_run_without_laws_says_so(tmp_path, capsys):
    run = Run(tmp_path, config(policy="static"), doms=domains(), steps=50).start().train(10)
    run.save(tmp_path / "ado" / "state_10.ado")
    run.mixer.close()
    mixing.stop_fits()
    assert cli.main(["whatif", str(tmp_path), "--set", "wiki=.4"]) == 0
    assert "no law was fitted by the newest checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize("argv, words", [
    ([], "nothing is proposed"), (["--set", "latin=.5"], "there is no domain 'latin'"),
    (["--set", "wiki=1.5"], "a share is from 0 to 1"), (["--until", "90", "--static"], "are planned already"),
    (["--until", "900", "--static"], "give --until a step from"), (["--policy", "x"], "there is no policy"),
    (["--set", "wiki=.6", "--set", "code=.6"], "sum to 1.2"),
])  # fmt: skip
def test_what_cannot_be_is_one_sentence(folder, capsys, argv, words):
    assert cli.main(["whatif", str(folder), *argv]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_directory_that_is_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["whatif", str(tmp_path), "--static"]) == 2
    assert "is no run directory" in capsys.readouterr().err
    (tmp_path / "ado").mkdir()
    assert cli.main(["whatif", str(tmp_path), "--static"]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
