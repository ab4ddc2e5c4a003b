"""The page: complete, escaped, small, and in need of nothing else. (test_browser.py opens it.)"""

import base64
import gzip
import html.parser
import json

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.report import html as page_module
from ado_megatron.report.arms import make_arms
from ado_megatron.report.payload import Block, packed, payload
from ado_megatron.report.read import read_run
from ado_megatron.report.series import AT_REFITS, OVER_TIME, Columns
from tests.kit.runs import NAMES, make_run, steps_of

MOST_BYTES = 5_000_000


class Page(html.parser.HTMLParser):
    """Collects what a page loads, its headings, its table cells and its data."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.headings, self.cells, self.texts, self._in = [], [], 0, {}, (None, {})
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._in = tag, dict(attrs)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.cells += tag == "td"

    def handle_endtag(self, tag):
        self._in = None, {}

    def handle_data(self, data):
        tag, attrs = self._in
        if tag == "h2":
            self.headings.append(data)
        if tag == "script" and "id" in attrs:
            self.texts[attrs["id"]] = self.texts.get(attrs["id"], "") + data

    def curve(self, arm, name, part="value"):
        """D x E of a curve, as the page's script unpacks it."""
        data = json.loads(self.texts["data"])
        planes = np.frombuffer(gzip.decompress(base64.b64decode(self.texts["block"])), np.uint8)
        block = planes.reshape(4, -1).T.copy().view("<f4")[:, 0]
        curve = data["arms"][arm]["curves"][name]
        offset, rows = curve[part]
        return block[offset : offset + rows * len(curve["step"])].reshape(rows, -1)


def test_the_command_writes_a_picture_and_a_page_that_needs_nothing_else(arms, tmp_path, capsys):
    line = ["report", str(arms[0][0]), "--compare", str(arms[1][0]), "--out", str(tmp_path / "out")]
    assert cli.main(line) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().splitlines()[-1].startswith(f"report: {tmp_path / 'out' / 'report.html'}")
    assert all(name in printed for name in NAMES) and "adaptive minus static" in printed
    png = (tmp_path / "out" / "report.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) < 300_000
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.sources == []
    assert page.headings == ["Weights against the prior", "Final losses", "Journal", "Table", "Options"]
    assert page.cells == len(NAMES) * 10
    library = gzip.decompress(base64.b64decode(page.texts["library"])).decode()
    assert "plotly.js v" in library[:200] and "MIT license" in library[:400]


def test_the_page_holds_what_the_run_wrote(arms, tmp_path):
    cli.main(["report", str(arms[0][0]), "--out", str(tmp_path)])
    page = Page((tmp_path / "report.html").read_text())
    records = steps_of(arms[0][1])
    for name, key in (("loss", "loss_K"), ("weight", "weights_K"), ("epochs", "epochs_C")):
        written = np.array([record[key] for record in records], dtype=float)
        np.testing.assert_allclose(page.curve(0, name).T, written, rtol=1e-5, atol=1e-4 if name == "epochs" else 0)
    fits = [record for record in arms[0][1] if record["type"] == "fit"]
    alpha = np.where([fit["ok_K"] for fit in fits], [fit["alpha_K"] for fit in fits], np.nan)
    np.testing.assert_allclose(page.curve(0, "alpha").T, alpha, rtol=1e-5)
    np.testing.assert_allclose(page.curve(0, "alpha", "below")[0], 0.03, rtol=1e-5)


def test_transfers_have_the_interval_of_their_fit(tmp_path):
    records = make_run(tmp_path, steps=300)
    fits = [record for record in records if record["type"] == "fit"]
    for fit in fits:
        fit |= {"transfer_K": [0.2] * 8, "transfer_low_K": [0.1] * 8, "transfer_high_K": [0.5] * 8}
        fit |= {"ok_K": [True] * 8}
    (tmp_path / "ado" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = Page(page_module.page(make_arms([[read_run(tmp_path)]])))
    for part, expected in (("value", 0.2), ("below", 0.1), ("above", 0.3)):
        np.testing.assert_allclose(page.curve(0, "transfer", part), expected, rtol=1e-5)


def test_a_thousand_domains_and_odd_names_make_a_page_under_five_megabytes(tmp_path):
    names = [f"<b>{'abcdefghij'[i % 10]}&$\\oops{{$</script>/{i}" for i in range(1000)]
    prior = np.random.default_rng(0).dirichlet(np.full(1000, 0.5)) + 1e-6
    make_run(tmp_path, names=names, prior=prior / prior.sum(), steps=150, batch=4096)
    text = page_module.page(make_arms([[read_run(tmp_path)]]))
    assert len(text.encode()) < MOST_BYTES
    assert "<b>a" not in text and text.count("</script>") == 4
    data = json.loads(Page(text).texts["data"])
    assert data["names"][:1000] == [names[k] for k in np.argsort(-prior, kind="stable")]
    assert data["domains"] == 1000 and len(data["groups"]) == 10
    assert sorted(member for group in data["groups"] for member in group["members"]) == list(range(1000))


def test_numbers_that_nothing_can_compress_leave_room_for_the_library_and_the_table(arms):
    block = Block()
    block.put(np.random.default_rng(0).lognormal(0, 1, OVER_TIME + AT_REFITS))
    table_of_a_thousand, few = 450_000, page_module.page(make_arms([[read_run(arms[0][0])]]))
    assert len(packed(block.bytes())) + len(few) + table_of_a_thousand < MOST_BYTES


def test_so_many_arms_that_their_curves_need_the_room_show_fewer_domains(tmp_path):
    make_run(tmp_path, names=[f"n{i}" for i in range(1000)], prior=np.full(1000, 1e-3), steps=200, batch=4096)
    run = read_run(tmp_path)
    folders = [[run, run] for _ in range(5)]
    arms = [page_module.Arm(f"arm {a}", runs) for a, runs in enumerate(folders)]
    _, block = payload(arms, Columns.of(arms))
    assert len(Columns.of(arms).shown_D) < 1000 and len(block) < 4 * 900_000


def test_without_the_plotting_library_the_table_is_printed_and_one_sentence_says_what_is_missing(
    arms, tmp_path, capsys, monkeypatch
):
    from ado_megatron.report import command

    real = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "plotly" else real(name))
    assert cli.main(["report", str(arms[0][0]), "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "python" in printed.out and not list(tmp_path.iterdir())
    assert "need plotly: pip install 'ado-megatron[report]'" in printed.err


@pytest.mark.parametrize("steps", [5, 20])
def test_a_run_that_has_just_begun_makes_a_page(tmp_path, steps):
    make_run(tmp_path, steps=steps)
    assert cli.main(["report", str(tmp_path)]) == 0
