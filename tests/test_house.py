"""The house: imports point down only, foreign libraries stay where they belong, and ruff has nothing to say."""
import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ado_megatron"

# The floors from the top down; a room is a wing (a folder) or a module beside them. A room may import rooms of lower
# floors, and of its own floor where that makes no circle.
FLOORS = [
    ["cli", "run"],
    ["hosts", "trainer", "watch", "whatif", "report", "replay", "simulate", "prepare", "doctor", "audit"],
    ["mixer"],
    ["steer", "alarms"],
    ["config", "measure"],
    ["stream", "policy", "scaling_law", "blend"],
    ["profiles"],
    ["option_fields"],
    ["files", "npz", "tables", "errors", "processes", "messages"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Foreign libraries and the modules that may import them, by wing or by module. numpy is everyone's.
FOREIGN = {
    "scipy": {"scaling_law", "simulate/response", "report/arms"},
    "torch": {"hosts", "trainer", "mixer", "measure", "doctor"},
    "torch.distributed": {"hosts", "trainer", "mixer/world"},
    "megatron": {"hosts", "trainer", "prepare", "doctor"},
    "deepspeed": {"hosts", "trainer", "doctor"},
    "apex": {"trainer"},
    "transformers": {"hosts"},
    "plotly": {"report/html"},
    "matplotlib": {"report/figures", "replay/plot", "simulate/figure"},
    "PIL": {"report/figures"},  # matplotlib brings it
    "tensorboard": {"trainer"},
    "wandb": {"trainer/boards"},
    "prometheus_client": {"measure/prometheus"},
    "mlflow": {"trainer/mlflow_board"},
    "tqdm": {"prepare", "trainer"},
    "sentencepiece": {"prepare/tokenizer", "trainer"},
    "tokenizers": {"prepare/tokenizer", "trainer"},
    "numba": {"stream/row_kernel"},
    "rich": {"tables", "simulate/command", "watch"},
    "jinja2": {"report/html"},
    "zstandard": {"prepare/documents"},
    "yaml": {"files"},
    "orjson": {"measure/metrics"},
    "typing_extensions": {"hosts"},
}


def room_of(path):
    """The wing or the module beside the wings that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def modules():
    """Every module of the package but its root."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem != "__init__"]


def label(path):
    """`stream/schedule` for ado_megatron/stream/schedule.py."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


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
    """The rooms of this package that a file imports from."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("ado_megatron.")}
    return names & {room_of(path) for path in modules()}


def test_every_room_has_its_floor_and_every_floor_its_rooms():
    found = {room_of(path) for path in modules()}
    assert found - FLOOR_OF.keys() == set(), "give the new room its floor in FLOORS"
    assert FLOOR_OF.keys() - found == set()


@pytest.mark.parametrize("path", modules(), ids=label)
def test_imports_point_down(path):
    upward = {other for other in own(path) if FLOOR_OF[other] < FLOOR_OF[room_of(path)]}
    assert not upward, f"{label(path)} imports {upward} from above"


@pytest.mark.parametrize("path", modules(), ids=label)
def test_foreign_libraries_stay_where_they_belong(path):
    used = {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names)
    used |= {"torch.distributed"} & {".".join(module.split(".")[:2]) for module in imports(path)}
    for library in used - {"ado_megatron", "numpy"}:
        assert {room_of(path), label(path)} & FOREIGN.get(library, set()), f"{label(path)} imports {library}"


def test_no_circle_of_rooms():
    edges = {room_of(path): set() for path in modules()}
    for path in modules():
        edges[room_of(path)] |= own(path) - {room_of(path)}
    while free := {room for room, needs in edges.items() if not needs}:
        edges = {room: needs - free for room, needs in edges.items() if room not in free}
    assert edges == {}


def test_the_walk_sees_hidden_imports(tmp_path):
    hidden = ["from torch import distributed", "import ado_megatron.mixer as m", "from ado_megatron import report"]
    (tmp_path / "m.py").write_text("\n    ".join(["def f():", *hidden]))
    found = set(imports(tmp_path / "m.py"))
    assert {"torch.distributed", "ado_megatron.mixer", "ado_megatron.report"} <= found
    assert own(tmp_path / "m.py") == {"mixer", "report"}


@pytest.mark.parametrize("wing", ["blend", "scaling_law", "policy", "stream", "steer", "report", "replay"])
def test_every_module_of_a_wing_without_torch_can_be_imported_where_torch_is_not(wing):
    """mixer.refit_process too: it plans in a process of its own, which would wait seconds for torch."""
    names = ["ado_megatron." + label(path).removesuffix("/__init__").replace("/", ".") for path in modules()]
    wanted = [name for name in names if name.split(".")[1] == wing] + ["ado_megatron.mixer.refit_process"]
    code = f"""
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not here")
sys.meta_path.insert(0, Blocked())
for name in {wanted}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def public_functions(path):
    """(name, node) of every function, method and class of a module that no underscore hides; compiled kernels apart,
    whose types numba infers."""
    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                continue
            hidden = child.name.startswith("_") and (child.name != "__init__" or isinstance(node, ast.Module))
            if not hidden and "compiled" not in map(ast.unparse, child.decorator_list):
                yield f"{prefix}{child.name}", child
                if isinstance(child, ast.ClassDef):
                    yield from visit(child, f"{prefix}{child.name}.")

    return visit(ast.parse(path.read_text()), "")


def says_all(node):
    """Whether a public name has a docstring (that of __init__ is its class's) and annotations of all that it takes."""
    if isinstance(node, ast.ClassDef):
        return bool(ast.get_docstring(node))
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    known = all(a.annotation is not None for a in arguments if a.arg not in ("self", "cls"))
    return known and (node.name == "__init__" or (node.returns is not None and bool(ast.get_docstring(node))))


@pytest.mark.parametrize("path", modules(), ids=label)
def test_every_public_name_is_annotated_and_has_a_docstring(path):
    assert [name for name, node in public_functions(path) if not says_all(node)] == []


def test_a_public_name_without_is_found(tmp_path):
    bodies = ["def f(a): 'x'", "def g(a: int) -> int: pass", "class C:\n def __init__(self, a): ...", "def _h(a): pass",
              "def i(a: int) -> int: 'x'"]  # fmt: skip
    (tmp_path / "m.py").write_text("\n".join(bodies))
    assert [n for n, node in public_functions(tmp_path / "m.py") if not says_all(node)] == ["f", "g", "C", "C.__init__"]


@pytest.mark.parametrize("wing", sorted({path.parent.name for path in PACKAGE.glob("*/__init__.py")}))
def test_every_wing_says_what_it_is_and_shows_a_call(wing):
    """A paragraph, then lines that are set in; and a few names, of which each is there.

    stream exports none: a loader's worker that wants the sample key alone should not pay for the rest.
    """
    doc = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text()))
    first, *rest = doc.split("\n\n")
    assert len(rest) >= 2 and any(part.startswith("    ") for part in rest)
    module = importlib.import_module(f"ado_megatron.{wing}")
    exported = getattr(module, "__all__", [])
    assert (exported == []) == (wing == "stream") and len(exported) < 15
    assert [name for name in exported if not hasattr(module, name)] == []


@pytest.mark.parametrize("path", modules(), ids=label)
def test_no_file_over_300_lines_and_no_function_over_45(path):
    text = path.read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert len(text.splitlines()) <= 300
    assert [node.name for node in functions if node.end_lineno - node.lineno >= 45] == []


def test_the_package_root_imports_nothing():
    assert list(imports(PACKAGE / "__init__.py")) == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="numpy's types are others in the last numpy for Python 3.10")
def test_mypy_has_nothing_to_say():
    """Non-strict, over the package: what it is told is in pyproject.toml."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_has_nothing_to_say():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
