"""The page: complete, escaped, and in need of nothing else."""

import base64
import html.parser
import re

import numpy as np

from ado_megatron import cli
from tests.kit.runs import NAMES, make_run


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

    def handle_endtag(self, tag):
        self._in = None

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


def test_sixty_domains_and_odd_names_make_a_report(tmp_path):
    names = [f"<b>{i}&$\\oops{{$" for i in range(60)]
    make_run(tmp_path, names=names, prior=np.full(60, 1 / 60), steps=300)
    assert cli.main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "ado" / "report.html").read_text()
    assert "<b>" not in text and "&lt;b&gt;59&amp;" in text
    assert "The 24 largest domains are shown" in text
