"""An unmodified host, changed by hand while it goes on, killed, and resumed on another number of ranks."""

import re
import time

import psutil
import pytest

from ado_megatron import cli
from ado_megatron.audit import audit
from ado_megatron.steer.journal import read_journal
from tests.kit.host_runs import QUICK_ADO, tail, train, write_domains

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]
STEPS = 150


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_a_run_changed_killed_and_resumed_on_one_rank(host, tmp_path, capsys):
    data, save = ["--data-path", *write_domains(tmp_path)], tmp_path / "run"
    options = ["--num-workers", 1, *QUICK_ADO, "--ado-audit", "--save-interval", 10]
    answers = []

    def change_and_kill(process, log):
        deadline = time.monotonic() + 240
        while not re.search(r"iteration\s+10/", log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
        answers.append(cli.main(["set", str(save), "law=.5", "--policy", "static"]))
        answers.append(cli.main(["set", str(save), "lore=.5"]))
        answers.append(cli.main(["set", str(save), "wiki=-50%"]))
        (_, entry), done = read_journal(save / "ado" / "journal.json"), 0
        while done <= entry.block:
            done = max(map(int, re.findall(r"iteration\s+(\d+)/", log.read_text())))
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.02)
        ranks = psutil.Process(process.pid).children(recursive=True)  # torchrun's are in groups of their own
        for one in (process, *ranks):
            one.kill()

    killed = train(host, save, data, options, ranks=2, steps=STEPS, during=change_and_kill)
    assert killed.status == -9 and answers == [0, 2, 0], tail(killed)
    assert "there is no domain 'lore'; the domains are wiki, code, news, law" in capsys.readouterr().err
    assert cli.main(["whatif", str(save), "--set", "news=.4"]) == 0 and cli.main(["watch", str(save), "--once"]) == 0
    told = capsys.readouterr().out  # of a directory of checkpoints, which holds ado/
    assert "proposal: news: pin 0.4 (was none)" in told, told
    assert re.search(rf"^run: step \d+ of {STEPS} ", told, re.M) and "policy static" in told, told
    resumed = train(host, save, data, [*options, "--load", save], ranks=1, steps=STEPS)
    assert resumed.status == 0 and max(resumed.curve) == STEPS, tail(resumed)
    verdict = audit(save)
    assert verdict.failure is None and (verdict.repeated, verdict.skipped) == (0, 0)
    first, second = read_journal(save / "ado" / "journal.json")
    for record in resumed.metrics("step"):
        law, wiki = record["weights_K"][3], record["weights_K"][0]
        if record["step"] > first.block:
            assert abs(law - 0.5) < 1e-9
        if record["step"] > second.block:
            assert abs(wiki - 0.5 * 0.4 * 0.5 / 0.9) < 1e-9  # static 0.4 of the 0.9 that are not law, halved
