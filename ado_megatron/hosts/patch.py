"""`ado-megatron patch {check,apply,revert} CHECKOUT`: our insertions, for people who keep a fork of a framework.

A set in patches/ belongs to one commit of a framework. It holds our own lines, where they go (an anchor: a function
with its parameters, or an import) and the digest of each file as that commit has it; nothing of the framework. Every
inserted line ends with MARK, so taking the marked lines out again gives the file back to the byte.

A commit for which there is no set is refused: `check` then says which anchors hold in it, for whoever writes one.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ado_megatron.errors import UserError

MARK = "# ado-megatron"
_ROOTS = Path(__file__).resolve().parents[1:3]  # the installed package, or the clone
PATCHES = next((root / "patches" for root in _ROOTS if (root / "patches").is_dir()), _ROOTS[1] / "patches")


@dataclasses.dataclass(frozen=True)
class Insertion:
    """`lines` before an anchor: {"import": MODULE}, {"after_import": NAME} or {"function": NAME, "parameters": […]}."""

    anchor: dict
    lines: tuple[str, ...]

    def place(self, tree: ast.Module) -> tuple[int, int] | str:
        """(0-based line before which to insert, indentation), or a sentence that says why the anchor does not hold."""
        if "function" in self.anchor:
            return _place_of_function(tree, self.anchor["function"], self.anchor.get("parameters", []))
        wanted = self.anchor.get("import") or self.anchor["after_import"]
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.asname or alias.name for alias in node.names}
                if wanted in names or wanted == getattr(node, "module", None):
                    return (node.lineno - 1 if "import" in self.anchor else node.end_lineno or node.lineno), 0
        return f"no import of {wanted}"


def _place_of_function(tree: ast.Module, name: str, parameters: Sequence[str]) -> tuple[int, int] | str:
    found: Any = tree
    for part in name.split("."):
        found = next((node for node in ast.iter_child_nodes(found) if getattr(node, "name", None) == part), None)
        if found is None:
            return f"no function {name}"
    names = [argument.arg for argument in (*found.args.posonlyargs, *found.args.args)]
    if names[: len(parameters)] != list(parameters):
        return f"{name} takes ({', '.join(names)}), expected to begin with ({', '.join(parameters)})"
    first = min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])
    return first - 1, found.col_offset


@dataclasses.dataclass(frozen=True)
class PatchedFile:
    """One file of a set: its path in the checkout, the digest that the commit has, and what goes in."""

    path: str
    sha256: str
    insertions: tuple[Insertion, ...]

    def problems(self, text: str) -> list[str]:
        """A sentence for every anchor that does not hold in `text`."""
        try:
            tree = ast.parse(text)
        except SyntaxError as error:
            return [f"{self.path} is not Python that can be read ({error})"]
        places = [insertion.place(tree) for insertion in self.insertions]
        return [f"{self.path}: {place}" for place in places if isinstance(place, str)]

    def apply(self, text: str) -> str:
        """`text` with our lines. Every anchor must hold."""
        tree, lines = ast.parse(text), text.splitlines(keepends=True)
        places = [(*insertion.place(tree), insertion.lines) for insertion in self.insertions]
        for line, indentation, ours in sorted(places, key=lambda place: place[0], reverse=True):
            lines[line:line] = [f"{' ' * indentation}{text}  {MARK}\n" for text in ours]
        return "".join(lines)


def without_marks(text: str) -> str:
    """`text` without the lines that carry our mark: what was there before."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.rstrip("\n").endswith(MARK))


@dataclasses.dataclass(frozen=True)
class PatchSet:
    """The insertions for one commit of a framework."""

    host: str
    commit: str
    files: tuple[PatchedFile, ...]

    @classmethod
    def read(cls, path: Path) -> PatchSet:
        """From a JSON file of patches/."""
        values = json.loads(path.read_text())
        files = [
            PatchedFile(
                name, entry["sha256"],
                tuple(Insertion(dict(item["anchor"]), tuple(item["lines"])) for item in entry["insert"]),
            )
            for name, entry in values["files"].items()
        ]  # fmt: skip
        return cls(values["host"], values["commit"], tuple(files))

    def originals(self, checkout: Path) -> dict[str, str] | None:
        """Each file as it was before any patch, or None where one is missing."""
        texts = {}
        for file in self.files:
            if not (checkout / file.path).is_file():
                return None
            texts[file.path] = without_marks(_read(checkout / file.path))
        return texts

    def before(self, checkout: Path) -> dict[str, str]:
        """Each file as it was before any patch. UserError where one is missing."""
        texts = self.originals(checkout)
        if texts is None:
            raise UserError(f"{checkout} lacks a file that {self.host} {self.commit} has; check it out again")
        return texts

    def matches(self, checkout: Path) -> bool:
        """True if every file, our lines apart, is that of the set's commit."""
        texts = self.originals(checkout)
        return texts is not None and all(_digest(texts[file.path]) == file.sha256 for file in self.files)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read()


def _write_all(checkout: Path, texts: dict[str, str]) -> None:
    """Every file or none: all are written aside first; if a replacement fails, those made are taken back."""
    before = {name: _read(checkout / name) for name in texts}
    aside = {name: (checkout / name).with_name(f".{Path(name).name}.ado-{os.getpid()}") for name in texts}
    done = []
    try:
        for name, text in texts.items():
            with open(aside[name], "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                file.write(text)
            aside[name].chmod((checkout / name).stat().st_mode)
        for name in texts:
            os.replace(aside[name], checkout / name)
            done.append(name)
    except OSError:
        for name in done:
            with open(checkout / name, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                file.write(before[name])
        raise
    finally:
        for path in aside.values():
            path.unlink(missing_ok=True)


def read_sets(directory: Path = PATCHES) -> list[PatchSet]:
    """All sets that come with this package."""
    sets = [PatchSet.read(path) for path in sorted(directory.glob("*.json"))]
    if not sets:
        raise UserError(f"{directory} holds no insertions; give --patches a directory that does")
    return sets


def find(checkout: Path, sets: Sequence[PatchSet]) -> PatchSet:
    """The set whose commit the checkout has. Raises UserError with the anchors that hold if there is none."""
    for patch_set in sets:
        if patch_set.matches(checkout):
            return patch_set
    known = ", ".join(f"{patch_set.host} {patch_set.commit}" for patch_set in sets)
    raise UserError(
        f"the files of {checkout} are those of no commit with a set of insertions ({known}){_nearest(checkout, sets)}"
    )


def _nearest(checkout: Path, sets: Sequence[PatchSet]) -> str:
    """What holds of the set that fits best, as the rest of a sentence."""
    reports = []
    for patch_set in sets:
        texts = patch_set.originals(checkout)
        if texts is not None:
            problems = [problem for file in patch_set.files for problem in file.problems(texts[file.path])]
            total = sum(len(file.insertions) for file in patch_set.files)
            reports.append((len(problems), total, patch_set, problems))
    if not reports:
        return "; nor does it have the files of one"
    missing, total, patch_set, problems = min(reports, key=lambda report: report[0])
    text = f"; of the {total} anchors of {patch_set.host} {patch_set.commit}, {total - missing} hold"
    return text + (f", and these do not: {'; '.join(problems)}" if problems else ", so a set can be made for it")


def state(checkout: Path, patch_set: PatchSet) -> str:
    """ "plain", "patched" or "mixed" (some files carry other insertions than the set's, or not all do)."""
    texts = patch_set.before(checkout)
    now = {file.path: _read(checkout / file.path) for file in patch_set.files}
    if now == texts:
        return "plain"
    return "patched" if now == {file.path: file.apply(texts[file.path]) for file in patch_set.files} else "mixed"


def apply(checkout: Path, patch_set: PatchSet) -> None:
    """Insert our lines; a checkout that has them already stays as it is, one with others of ours gets these."""
    texts = patch_set.before(checkout)
    _write_all(checkout, {file.path: file.apply(texts[file.path]) for file in patch_set.files})


def revert(checkout: Path, patch_set: PatchSet) -> None:
    """Take our lines out; every file is that of the commit again, to the byte."""
    _write_all(checkout, patch_set.before(checkout))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or UserError for a checkout that no set fits."""
    parser = argparse.ArgumentParser(prog="ado-megatron patch", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("check", "apply", "revert"))
    parser.add_argument("checkout", type=Path, help="directory of the framework")
    parser.add_argument("--patches", type=Path, default=PATCHES, help="directory of the sets [ours]")
    options = parser.parse_args(argv)
    patch_set = find(options.checkout, read_sets(options.patches))
    before = state(options.checkout, patch_set)
    if options.action == "apply" and before != "patched":
        apply(options.checkout, patch_set)
    if options.action == "revert" and before != "plain":
        revert(options.checkout, patch_set)
    after = state(options.checkout, patch_set)
    change = before if before == after else f"{before} → {after}"
    print(f"{options.checkout}: {patch_set.host} {patch_set.commit}, {change}")
    return 0
