"""Which framework a training script belongs to: told by the files of the `megatron` that it would import."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from ado_megatron.errors import UserError

# framework -> files that tell it, relative to its `megatron` directory
MARKS = {
    "megatron_bridge": ("bridge/training/pretrain.py", "bridge/training/callbacks.py"),
    "megatron_lm": ("training/training.py", "core/rerun_state_machine.py"),
    "megatron_deepspeed": ("training.py", "data/blendable_dataset.py", "model/gpt_model.py"),
}
# framework -> the package of its training loop
LOOPS = {
    "megatron_bridge": "megatron.bridge", "megatron_lm": "megatron.training", "megatron_deepspeed": "megatron.training"
}  # fmt: skip


def recognise(script: str | Path) -> tuple[str, Path]:
    """(framework, its checkout) of the `megatron` that `script` would import now; its directory is on sys.path.

    A `megatron` that lies outside the script's checkout (today's wheel of megatron-core holds a training loop, too)
    counts if the script, or a module beside it that it imports, imports the training loop. So Megatron-Bridge, beside
    which Megatron-LM always lies, is told by the script. Raises UserError else.
    """
    spec = importlib.util.find_spec("megatron")
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec is not None else []
    unused = []
    for framework, files in MARKS.items():
        for place in places:
            if all((place / name).is_file() for name in files):
                inside = place.parent.resolve() in Path(script).resolve().parents
                if inside or _uses(Path(script), LOOPS[framework]):
                    return framework, place.parent
                unused.append(f"{LOOPS[framework]}, whose loop in {place} would be hooked")
    if unused:
        raise UserError(
            f"{script} does not import {' nor '.join(unused)}; give the script that calls its pretrain(), or say "
            "--ado-off"
        )
    where = ", ".join(map(str, places)) or "nothing named megatron"
    tried = "; ".join(f"{framework} by {', '.join(files)}" for framework, files in MARKS.items())
    raise UserError(f"no framework was recognised in {where} (tried {tried}); give the script of a Megatron checkout")


def _uses(script: Path, loop: str) -> bool:
    """True if the script or a module beside it that it imports, through any number of them, imports the loop."""
    waiting, known = [script], {script}
    while waiting:
        for name in _imports(waiting.pop()):
            if name == loop or name.startswith(loop + "."):
                return True
            module = script.parent / name.replace(".", "/")
            for beside in (module.with_suffix(".py"), module / "__init__.py"):
                if beside not in known and beside.is_file():
                    known.add(beside)
                    waiting.append(beside)
    return False


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; none of a file that is no Python."""
    try:
        tree = ast.parse(path.read_text(errors="replace"))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
