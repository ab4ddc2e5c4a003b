"""What boards show, as a text file that Prometheus' node exporter collects (--ado-prometheus FILE).

The names are those of board_names.py: `ado/weight/wiki` is `ado_weight{run="first",domain="wiki"}`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from ado_megatron.errors import UserError
from ado_megatron.measure.board_names import TABLE, BoardName

_DOMAIN = "/DOMAIN"
_STEP = BoardName("ado/step", "steps done")


def check_prometheus(path: str | None) -> None:
    """UserError where a file is asked for that cannot be written: no package, or no folder for it."""
    if path is None:
        return
    if importlib.util.find_spec("prometheus_client") is None:
        raise UserError(
            "--ado-prometheus needs the package prometheus_client; `pip install prometheus_client`, or `pip install "
            "ado-megatron[prometheus]`"
        )
    folder = Path(path).expanduser().absolute().parent
    if not folder.is_dir():
        raise UserError(f"--ado-prometheus {path}: there is no directory {folder}; make it, or name another file")


class TextFile:
    """The newest value of each name, written anew as a whole. run: the label by which runs are told apart."""

    def __init__(self, path: str, run: str):
        self._path, self._run = Path(path).expanduser(), run
        self._values: dict[str, float] = {}

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Scalars by name, of `step` steps done. Raises OSError; the file is then the old one."""
        from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

        self._values |= {**scalars, _STEP.name: float(step)}
        registry, gauges = CollectorRegistry(), {}
        for name, value in self._values.items():
            row, labels = _labelled(name)
            if row not in gauges:
                metric = row.name.removesuffix(_DOMAIN).replace("/", "_")
                gauges[row] = Gauge(metric, row.meaning, ["run", *labels], registry=registry)
            gauges[row].labels(run=self._run, **labels).set(value)
        write_to_textfile(str(self._path), registry)


@functools.cache
def text_file(path: str, run: str) -> TextFile:
    """The one of this process for a path."""
    return TextFile(path, run)


def _labelled(name: str) -> tuple[BoardName, dict[str, str]]:
    """The row of the table that a name is of, and the domain in it as a label."""
    for row in (*TABLE, _STEP):
        stem = row.name.removesuffix(_DOMAIN)
        if row.name == name:
            return row, {}
        if stem != row.name and name.startswith(f"{stem}/"):
            return row, {"domain": name[len(stem) + 1 :]}
    raise ValueError(f"{name} is not in the table of board_names.py")
