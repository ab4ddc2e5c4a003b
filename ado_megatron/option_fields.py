"""Options as documented fields of frozen dataclasses: the one engine from field to flag, range and meaning.

    @dataclass(frozen=True, kw_only=True)
    class StoveOptions:
        heat: float = option(1.0, "heat of the stove", above=0.0, resume="free")

Everything that is asked about an option is metadata of its field: its range, whether a resumed run may change it, how
ranks are compared on it, and whether it sets two runs apart. Nobody keeps a list of names beside.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NoReturn

from ado_megatron.errors import UserError

RESUME = ("fixed", "accept", "free", "silent")
RANKS = ("value", "content", "free")


def option(
    default: Any, help: str, *, kind: type | None = None, choices: Iterable | None = None,
    low: float | None = None, high: float | None = None, above: float | None = None, nargs: int | str | None = None,
    resume: str = "accept", ranks: str = "value", compare: bool = True, before: Any = None,
) -> Any:  # fmt: skip
    """A dataclass field with its documentation, its range (low ≤ value ≤ high, value > above) and its meaning.

    resume: what a resumed run may do with it. "fixed": never change it, the stream would be another. "accept": change
    it when the user accepts changes, since saved numbers change their meaning. "free": change it at once. "silent":
    it decides no sample and no weight, so nobody need hear of it.
    ranks: "value": every rank must have started with the same; "content": a path, whose file must say the same on every
    rank; "free": ranks may differ.
    compare: two runs that differ in it differ in more than their mixture.
    before: what a run was like that was saved before there was the option; a run that goes on from it stays so.
    A switch (kind bool) with `choices` is on, off, or one of these words: `--x`, `--no-x`, `--x=WORD`.
    """
    if resume not in RESUME or ranks not in RANKS:
        raise ValueError(f"resume is one of {RESUME} and ranks one of {RANKS}, not {resume!r} and {ranks!r}")
    kind = type(default) if kind is None else kind
    choices = None if choices is None else tuple(choices)
    metadata = dict(
        help=help, kind=kind, choices=choices, low=low, high=high, above=above, nargs=nargs, resume=resume,
        ranks=ranks, compare=compare, before=before,
    )  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(name: str, prefix: str = "--") -> str:
    """The flag of a field: `--ado-` and `min_share` make `--ado-min-share`."""
    return prefix + name.replace("_", "-")


def names(options: Any, **meaning: Any) -> frozenset[str]:
    """Names of the fields whose metadata says all of `meaning`, e.g. `names(AdoConfig, resume="free")`."""
    return frozenset(
        spec.name for spec in dataclasses.fields(options)
        if all(spec.metadata[key] == value for key, value in meaning.items())
    )  # fmt: skip


def check_fields(options: Any, prefix: str = "--") -> None:
    """UserError, naming the flag, for the first field whose value has another type or lies outside its range."""
    for spec in dataclasses.fields(options):
        value = getattr(options, spec.name)
        if value is None and spec.default is None:
            continue
        flag, meta = flag_of(spec.name, prefix), spec.metadata
        items = value if meta["nargs"] is not None and isinstance(value, (tuple, list)) else (value,)
        for item in items:
            _check_one(flag, meta, item)


def _check_one(flag: str, meta: Any, value: Any) -> None:
    kind = meta["kind"]
    if kind is bool and meta["choices"] is not None:
        if isinstance(value, bool) or value in meta["choices"]:
            return
        raise UserError(f"{flag} stands alone or is one of {', '.join(meta['choices'])}, not {value!r}")
    right = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{flag} must be of type {kind.__name__}, not {value!r}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{flag} must be finite, not {value!r}")
    if meta["choices"] is not None and value not in meta["choices"]:
        raise UserError(f"{flag} must be one of {', '.join(map(str, meta['choices']))}, not {value!r}")
    if meta["low"] is not None and value < meta["low"]:
        raise UserError(f"{flag} must be at least {meta['low']}, not {value!r}")
    if meta["above"] is not None and value <= meta["above"]:
        raise UserError(f"{flag} must be above {meta['above']}, not {value!r}")
    if meta["high"] is not None and value > meta["high"]:
        raise UserError(f"{flag} must be at most {meta['high']}, not {value!r}")


def add_arguments(parser: Any, options: type, prefix: str = "--", more_help: dict[str, str] | None = None) -> None:
    """Add a flag for every field (for a boolean one also `--no-…`). more_help: what stands in place of the default."""
    for spec in dataclasses.fields(options):
        meta, flag = spec.metadata, flag_of(spec.name, prefix)
        tail = (more_help or {}).get(spec.name)
        if tail is None and spec.default not in (None, ""):
            tail = f"[{spec.default}]"
        help = (meta["help"] + (f" {tail}" if tail else "")).replace("%", "%%")
        if meta["kind"] is bool and meta["choices"] is not None:
            parser.add_argument(
                flag, flag_of(spec.name, "--no-" + prefix[2:]), action=_SwitchOrWord, nargs="?", default=spec.default,
                metavar="|".join(meta["choices"]), help=help,
            )
        elif meta["kind"] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=spec.default, help=help)
        else:
            choices = meta["choices"] if meta["kind"] is str else None  # others are checked, with a better sentence
            parser.add_argument(
                flag, type=meta["kind"], choices=choices, nargs=meta["nargs"], default=spec.default, help=help
            )


class _SwitchOrWord(argparse.Action):
    """`--x` is True, `--no-x` is False, `--x=WORD` is the word; what is not offered, check_fields refuses."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        off = (option_string or "").startswith("--no-")
        if off and values is not None:
            parser.error(f"{option_string} takes no value, {values!r} was given")
        setattr(namespace, self.dest, False if off else True if values is None else values)


def from_args(options: type, namespace: argparse.Namespace, prefix: str = "--") -> Any:
    """The options of parsed arguments; a flag that the namespace lacks keeps its default. Raises UserError."""
    values = {}
    for spec in dataclasses.fields(options):
        value = getattr(namespace, flag_of(spec.name, prefix)[2:].replace("-", "_"), spec.default)
        values[spec.name] = tuple(value) if isinstance(value, list) else value
    return options(**values)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are UserErrors: one sentence, exit code 2, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; `{self.prog} --help` lists the options")
