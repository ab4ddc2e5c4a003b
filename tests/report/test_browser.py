"""The page in a real, headless Chromium: what it shows, and what its controls do.

    apt-get install chromium chromium-driver
    .venv/bin/python -m pytest -m slow tests/report/test_browser.py
"""

import os
import shutil

import numpy as np
import pytest
from scipy import stats

from ado_megatron.report import html
from ado_megatron.report.arms import make_arms
from ado_megatron.report.read import read_run
from tests.kit.runs import NAMES, make_run, steps_of, write_records

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium: apt-get install chromium chromium-driver"),
]
TRACES = """
return document.getElementById('chart').data.map(t => ({name: t.name, yaxis: t.yaxis, x: [...t.x], y: [...t.y]}))
"""
TITLES = "return document.getElementById('chart').layout.annotations.map(a => a.text.replace(/<.?b>/g, ''))"
FRAME = """
return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))
"""


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -e .[test]")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1300,900"):
        options.add_argument("--" + flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    os.environ.setdefault("SE_AVOID_STATS", "true")  # selenium asks nothing of a network
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Shown:
    """A page in the browser, and what a test asks of it."""

    def __init__(self, browser, path):
        from selenium.webdriver.support.wait import WebDriverWait

        self.browser = browser
        browser.get_log("browser")
        browser.get(f"file://{path}")
        WebDriverWait(browser, 120).until(lambda b: b.execute_script("return document.body.dataset.ready"))
        self.settle()

    def settle(self):
        self.browser.execute_script(FRAME)

    def click(self, selector):
        from selenium.webdriver.common.by import By

        self.browser.find_element(By.CSS_SELECTOR, selector).click()
        self.settle()

    def write(self, selector, text):
        from selenium.webdriver.common.by import By

        field = self.browser.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(text)
        self.settle()

    def js(self, code):
        return self.browser.execute_script(code)

    def traces(self, title):
        """Traces of the panel under a title: name → (x, y)."""
        place = self.js(TITLES).index(title)
        axis = "y" + (str(place + 1) if place else "")
        return {trace["name"]: (trace["x"], trace["y"]) for trace in self.js(TRACES) if trace["yaxis"] == axis}

    def list(self):
        """The list of domains as it is shown: name → its cells."""
        rows = self.js("return [...document.querySelectorAll('.domain')].map(r => r.innerText.split('\\n'))")
        return {row[-3]: row[-2:] for row in rows}


def page_of(folder, groups):
    path = folder / "report.html"
    html.save_page(make_arms([[read_run(run) for run in group] for group in groups]), path)
    return path


@pytest.fixture
def shown(browser, arms, tmp_path):
    return Shown(browser, page_of(tmp_path, [[arms[0][0]]]))


def test_the_page_shows_what_the_run_wrote_and_loads_nothing(shown, browser, arms):
    assert browser.get_log("browser") == []
    assert shown.js("return performance.getEntriesByType('resource').length") == 0
    records = steps_of(arms[0][1])
    weights = np.array([record["weights_K"] for record in records])
    for k, name in enumerate(NAMES):
        steps, losses = shown.traces("Loss")[name]
        assert steps == [record["step"] for record in records]
        written = [np.nan if record["loss_K"][k] is None else record["loss_K"][k] for record in records]
        np.testing.assert_allclose(np.array(losses, dtype=float), written, rtol=1e-5)
        np.testing.assert_allclose(shown.traces("Mixture")[name][1][1:], weights[:, k], rtol=1e-5)
        np.testing.assert_allclose(shown.traces("Epochs")[name][1], [r["epochs_C"][k] for r in records], atol=1e-3)
    last = shown.list()["python"]
    assert last == [f"{100 * weights[-1, 0]:.1f} %", f"{records[-1]['loss_K'][0]:.3f}"]


def test_a_click_hides_a_domain_and_another_one_shows_it_again(shown):
    before = shown.traces("Mixture")
    shown.click(".domain[data-series='1'] input")
    for title in ("Mixture", "Loss", "Epochs", "Learning speed, nats per 1,000 samples"):
        assert "cpp" not in shown.traces(title) and "python" in shown.traces(title)
    rest = 1 - sum(np.array(y) for name, (_, y) in before.items() if name in NAMES and name != "cpp")
    np.testing.assert_allclose(shown.traces("Mixture")["all others"][1], rest, atol=1e-6)
    shown.click(".domain[data-series='1'] input")
    assert shown.traces("Mixture") == before


def test_a_panel_can_be_hidden_and_the_loss_split_by_domain(shown):
    shown.click("button[data-key=mixture]")
    assert "Mixture" not in shown.js(TITLES)
    shown.click("#apart")
    assert [title for title in shown.js(TITLES) if title.startswith("Loss: ")] == [f"Loss: {name}" for name in NAMES]
    assert set(shown.traces("Loss: cpp")) == {"cpp", "cpp, law", "cpp, validation"}


def test_a_drag_zooms_all_panels_in_time_and_a_double_click_shows_the_whole_run(shown, browser):
    from selenium.webdriver import ActionChains

    left, right, top = shown.js(
        "const b = document.querySelector('#chart .nsewdrag').getBoundingClientRect(); return [b.left, b.right, b.top]"
    )
    at = [left + part * (right - left) for part in (0.25, 0.5)]
    mouse = ActionChains(browser, duration=50)
    mouse.w3c_actions.pointer_action.move_to_location(int(at[0]), int(top + 60)).pointer_down()
    mouse.w3c_actions.pointer_action.move_to_location(int(at[1]), int(top + 62)).pointer_up()
    mouse.perform()
    shown.settle()
    window = shown.js("return document.getElementById('chart').layout.xaxis.range")
    np.testing.assert_allclose(window, [150, 300], atol=3)
    assert abs(int(shown.js("return document.getElementById('from').value")) - 150) <= 3
    loss_axis = shown.js(TITLES).index("Loss") + 1
    low, high = shown.js(f"return document.getElementById('chart').layout.yaxis{loss_axis}.range")
    inside = [y for x, y in zip(*shown.traces("Loss")["unicode"], strict=True) if window[0] <= x <= window[1]]
    assert low < min(inside) and max(inside) < high  # the panels fit what is to be seen
    shown.click("#whole")
    assert shown.js("return document.getElementById('chart').layout.xaxis.range") == [0, 600]


def test_the_list_and_a_box_show_the_values_under_the_mouse(shown, browser, arms):
    from selenium.webdriver import ActionChains

    left, right, top = shown.js(
        "const b = document.querySelector('#chart .nsewdrag').getBoundingClientRect(); return [b.left, b.right, b.top]"
    )
    mouse = ActionChains(browser, duration=50)
    for shift in (-4, 0):
        mouse.w3c_actions.pointer_action.move_to_location(int(left + (right - left) / 3 + shift), int(top + 60))
    mouse.perform()
    shown.settle()
    step = int(shown.js("return document.getElementById('at').innerText").split()[-1])
    record = next(record for record in steps_of(arms[0][1]) if record["step"] == step)
    assert abs(step - 200) <= 5
    assert shown.list()["cpp"] == [f"{100 * record['weights_K'][1]:.1f} %", f"{record['loss_K'][1]:.3f}"]
    box = shown.js("return document.querySelector('.hoverlayer').textContent")
    assert f"{100 * record['weights_K'][1]:.2f}%" in box


def test_light_and_dark(shown, browser):
    page = "getComputedStyle(document.body).backgroundColor"
    paper = f"return [{page}, document.getElementById('chart').layout.paper_bgcolor]"
    assert shown.js(paper) == ["rgb(255, 255, 255)", "#ffffff"]
    shown.click("#theme")
    assert shown.js(paper) == ["rgb(22, 24, 28)", "#16181c"]
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        browser.refresh()
        assert shown.js(f"return {page}") == "rgb(22, 24, 28)"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_arms_of_three_seeds_have_bands_and_their_difference_a_panel(browser, tmp_path):
    runs = {}
    for seed in range(3):
        for arm, adaptive in (("ado", True), ("static", False)):
            runs[arm, seed] = make_run(tmp_path / f"{arm}{seed}", seed=seed + 10 * adaptive, adaptive=adaptive,
                                       config={"seed": seed}, interval=15)  # fmt: skip
    groups = [[tmp_path / f"{arm}{seed}" for seed in range(3)] for arm in ("ado", "static")]
    shown = Shown(browser, page_of(tmp_path, groups))
    assert browser.get_log("browser") == []
    loss = np.array([[r["loss_K"][0] for r in steps_of(runs["ado", seed])] for seed in range(3)])
    shown.click("#none")
    shown.click(".domain[data-series='0'] input")
    np.testing.assert_allclose(shown.traces("Loss")["python, ado (3 runs)"][1], loss.mean(0), rtol=1e-5)
    other = np.array([[r["loss_K"][0] for r in steps_of(runs["static", seed])] for seed in range(3)])
    title = "Loss: ado (3 runs) minus static (3 runs)"
    np.testing.assert_allclose(shown.traces(title)["python, static (3 runs)"][1], (loss - other).mean(0), atol=1e-5)
    place = shown.js(TITLES).index(title) + 1
    low, high, _ = [trace["y"] for trace in shown.js(TRACES) if trace["yaxis"] == f"y{place}"]
    interval = stats.ttest_rel(loss, other).confidence_interval(0.95)
    np.testing.assert_allclose([low, high], [interval.low, interval.high], rtol=1e-4, atol=1e-5)


def test_a_thousand_domains_are_grouped_searched_and_fit_a_phone(browser, tmp_path):
    names = [f"{'abcdefghij'[k % 10]}/{k}" for k in range(1000)]
    make_run(tmp_path / "run", names=names, prior=np.arange(1000, 0, -1) / 500500, steps=200, batch=4096)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True})  # fmt: skip
    try:
        shown = Shown(browser, page_of(tmp_path, [[tmp_path / "run"]]))
        assert shown.js("return document.documentElement.scrollWidth") <= 390
        shown.click("#side summary")
        assert len(shown.list()) == 10 and "a (100)" in shown.list()
        shown.write("#search", "/77")
        assert {name for name in shown.list() if "/" in name} == {name for name in names if "/77" in name}
        shown.click("#found")
        found = {name for name in names if "/77" in name}
        assert set(shown.traces("Loss")) - {"all others"} >= found
        assert {name for name in shown.traces("Mixture")} == found | {"all others"}
        assert browser.get_log("browser") == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_change_of_an_operator_is_a_line_through_all_panels_and_a_row_of_the_journal(browser, tmp_path):
    records = make_run(tmp_path, steps=300)
    change = {"type": "change", "step": 90, "id": 1, "block": 100, "who": "ann", "when": ""}
    change |= {"what": {"pins": {"cpp": 0.3}}, "before": {"pins": {"cpp": None}}}
    write_records(tmp_path, [*records[:30], change, *records[30:]])
    shown = Shown(browser, page_of(tmp_path, [[tmp_path]]))
    shapes = shown.js("return document.getElementById('chart').layout.shapes")
    lines = [shape for shape in shapes if shape["yref"] == "paper"]
    assert [(line["x0"], line["x1"], line["y0"], line["y1"]) for line in lines] == [(90, 90, 0, 1)]
    journal = shown.js("return document.getElementById('journal').innerText")
    assert "cpp: pin 0.3 (was none), from block 100 on, by ann" in journal
