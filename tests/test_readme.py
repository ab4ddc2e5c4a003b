"""The README keeps up with the code: its table of options, the commands and files that it names.

`python tests/test_readme.py` writes the table anew.
"""
import dataclasses
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the script; pytest has it

from ado_megatron import cli, profiles  # noqa: E402
from ado_megatron.config import AdoConfig  # noqa: E402

README = ROOT / "README.md"
START, END = "<!-- options: written by `python tests/test_readme.py` -->\n", "<!-- end of options -->"


def cell(value) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value}"


def row(field: dataclasses.Field, default: str) -> str:
    choices = field.metadata["choices"]
    words = field.metadata["help"] + (f" ({', '.join(map(str, choices))})" if choices else "")
    words = words.replace("|", "\\|")
    return f"| `--ado-{field.name.replace('_', '-')}` | {default} | {words} |"


def options_table() -> str:
    fields = dataclasses.fields(AdoConfig)
    lines = ["| option | default | |", "|---|---|---|"]
    plain = [field for field in fields if field.name not in profiles.OPTIONS]
    lines += [row(field, "–" if field.default is None else cell(field.default)) for field in plain]
    lines += ["", "<details><summary>What the profile sets unless you do</summary>", ""]
    lines += [f"| option | {' / '.join(profiles.NAMES)} | |", "|---|---|---|"]
    for field in fields:
        if field.name in profiles.OPTIONS:
            values = [cell(profiles.profile(name)[field.name]) for name in profiles.NAMES]
            lines.append(row(field, values[0] if len(set(values)) == 1 else " / ".join(values)))
    return "\n".join([*lines, "", "</details>", ""])


def test_the_table_of_options_is_that_of_the_config():
    text = README.read_text()
    assert text.split(START)[1].split(END)[0] == options_table(), "run: python tests/test_readme.py"


def test_the_table_holds_every_option_once():
    flags = re.findall(r"^\| `(--ado-[a-z-]+)` \|", options_table(), re.M)
    assert flags == ["--ado-" + field.name.replace("_", "-") for field in sorted(
        dataclasses.fields(AdoConfig), key=lambda field: field.name in profiles.OPTIONS)]  # fmt: skip


def test_every_flag_and_command_in_the_prose_exists():
    text = README.read_text()
    known = {field.name for field in dataclasses.fields(AdoConfig)}
    flags = {flag.replace("-", "_") for flag in re.findall(r"--(?:no-)?ado-([a-z-]+)", text)}
    assert flags <= known
    commands = set(re.findall(r"`?ado-megatron ([a-z]+)", text))
    assert commands == set(cli.COMMANDS)


def test_every_link_and_path_leads_somewhere():
    text = README.read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("https://")]
    scripts = re.findall(r"\b(?:launch|tests|ado_megatron|patches)/[\w./]*\w\.\w+", text)
    assert len(links) >= 5 and len(scripts) >= 5
    assert [path for path in {*links, *scripts} if not (ROOT / path).is_file()] == []


def test_the_picture_is_small():
    assert (ROOT / "launch" / "demo.png").stat().st_size < 200_000


if __name__ == "__main__":
    before, rest = README.read_text().split(START)
    README.write_text(before + START + options_table() + END + rest.split(END)[1])
