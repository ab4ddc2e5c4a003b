"""The house: imports point down only, foreign libraries stay where they belong, and ruff has nothing to say."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ado_megatron"

# From the top down. A module may import modules of its own row and of rows below it.
ROWS = [
    ["cli", "run", "hosts", "trainer", "doctor", "prepare", "report", "report_figures", "report_html",
     "report_table", "report_data"],
    ["mixer"],
    ["planner", "recorder", "refits", "resume", "metrics", "checkpoint", "comm", "fitter"],
    ["meter", "dataset", "draw_log", "audit", "schedule", "table", "apportion", "dense", "quota", "supply", "domains",
     "static_blend"],
    ["replay", "replay_plot", "trace", "corpora", "encode", "domain_writer", "tokenizer",
     "documents", "arguments", "scaling_law", "law_solver", "law_error", "law_starts", "policy", "simplex", "history",
     "config", "profiles", "metrics_file", "permutation", "errors"],
]  # fmt: skip
LOWEST = len(ROWS) - 1
ROW_OF = {module: row for row, modules in enumerate(ROWS) for module in modules}

# Foreign libraries and the modules that may import them. numpy and scipy are everyone's.
FOREIGN = {
    "megatron": {"hosts", "trainer", "prepare", "doctor"},
    "deepspeed": {"hosts", "trainer", "doctor"},
    "apex": {"trainer"},
    "transformers": {"hosts"},
    "matplotlib": {"report", "report_figures", "report_html", "replay_plot"},
    "PIL": {"report_figures"},  # matplotlib brings it
    "tensorboard": {"trainer"},
    "tqdm": {"prepare", "trainer"},
    "sentencepiece": {"tokenizer", "trainer"},
    "tokenizers": {"tokenizer", "trainer"},
    "zstandard": {"documents"},
    "yaml": {"domains"},
    "typing_extensions": {"hosts"},
}
TORCH_FREE = {
    *ROWS[LOWEST], "report", "report_figures", "report_html", "report_table", "report_data", "cli", "supply", "domains"
}  # fmt: skip


def modules():
    """(name in ROWS, path) of every module of the package."""
    named = [(path.relative_to(PACKAGE).with_suffix("").parts[0], path) for path in sorted(PACKAGE.rglob("*.py"))]
    return [(name, path) for name, path in named if name != "__init__"]


def imports(path):
    """Every module that a file imports, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module in ("ado_megatron", "torch"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path):
    """The modules of this package that a file imports, as names in ROWS."""
    known = {name for name, _ in modules()}
    names = {name.split(".")[1] for name in imports(path) if name.startswith("ado_megatron.")}
    return names & known


def test_every_module_has_its_row_and_every_row_its_modules():
    found = {name for name, _ in modules()}
    assert found - ROW_OF.keys() == set(), "give the new module its row in ROWS"
    assert ROW_OF.keys() - found == set()


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: getattr(value, "stem", ""))
def test_imports_point_down(name, path):
    upward = {other for other in own(path) if ROW_OF[other] < ROW_OF[name]}
    assert not upward, f"{path.name} imports {upward} from above"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: getattr(value, "stem", ""))
def test_foreign_libraries_stay_where_they_belong(name, path):
    tops = {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names)
    for top in tops - {"ado_megatron", "numpy", "scipy", "torch"}:
        assert name in FOREIGN.get(top, set()), f"{path.name} imports {top}"
    if name in TORCH_FREE:
        assert "torch" not in tops
    if ROW_OF[name] > 0 and name != "comm":
        used = {module for module in imports(path) if module.startswith("torch.distributed")}
        assert not used, f"{path.name} imports {used}; comm.py alone may"


def test_no_circle_of_imports():
    edges = {name: set() for name, _ in modules()}
    for name, path in modules():
        edges[name] |= own(path) - {name}
    hosts = {"hosts", "run"}  # run.py is the front door of hosts/: one unit
    edges["hosts"] -= hosts
    edges["run"] -= hosts
    while free := {name for name, needs in edges.items() if not needs}:
        edges = {name: needs - free for name, needs in edges.items() if name not in free}
    assert edges == {}


def test_the_walk_sees_hidden_imports(tmp_path):
    hidden = ["from torch import distributed", "import ado_megatron.mixer as m", "from ado_megatron import report"]
    (tmp_path / "m.py").write_text("\n    ".join(["def f():", *hidden]))
    found = set(imports(tmp_path / "m.py"))
    assert {"torch.distributed", "ado_megatron.mixer", "ado_megatron.report"} <= found
    assert own(tmp_path / "m.py") == {"mixer", "report"}


def test_the_package_root_imports_nothing():
    assert list(imports(PACKAGE / "__init__.py")) == []


def test_ruff_has_nothing_to_say():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
