"""What `--ado-transfer` says, as one number per domain.

Legend: K domains, s transfer (laws.py, equation 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.files import parse_json_or_yaml

FLAG = "--ado-transfer"
ESTIMATE = "estimate"
ENDS = {"own": 0.0, "shared": math.inf}

SidecarReader = Callable[[str], tuple[Sequence[str], np.ndarray]]


def number(text: str, where: str = FLAG) -> float | None:
    """The transfer that a word or a number stands for; None when `text` is neither (`estimate`, or a path).

    Raises UserError, naming `where`, for a number that is negative or NaN.
    """
    if text in ENDS:
        return ENDS[text]
    try:
        value = float(text)
    except ValueError:
        return None
    if not value >= 0:
        raise UserError(f"{where}: a transfer is a number from 0 to inf, not {text}; give one, or own, or shared")
    return value


def parse_transfer(text: str, names_K: Sequence[str], read_sidecar: SidecarReader | None = None) -> np.ndarray | None:
    """The transfer of each domain, transfer_K (float64, 0 to inf); None for `estimate`.

    text: `own`, `shared`, a number, `estimate`, or the path of a file: a mapping domain → value in JSON or YAML (a
    value is a number, `own` or `shared`), or the sidecar of an earlier run. A sidecar is what is not text; read_sidecar
    then gets the path and returns its (names, transfers). A mapping must name the domains of this run and no others;
    a sidecar may know more.
    Raises UserError, one sentence, for a file that cannot be read or that does not fit.
    """
    value = number(text)
    if value is not None:
        return np.full(len(names_K), value)
    if text == ESTIMATE:
        return None
    try:
        data = Path(text).read_bytes()
    except OSError as error:
        raise UserError(
            f"{FLAG}: {text} is not own, shared, estimate or a number, and as a file it cannot be read "
            f"({error.strerror}); give one of these"
        ) from error
    try:
        mapping, may_know_more = _mapping(text, data.decode()), False
    except UnicodeDecodeError:
        if read_sidecar is None:
            raise UserError(f"{FLAG}: {text} is not a text file; give a JSON or YAML mapping domain: value") from None
        names, values = read_sidecar(text)
        mapping, may_know_more = dict(zip(names, np.asarray(values, np.float64).tolist(), strict=True)), True
    return _in_order(text, mapping, names_K, may_know_more)


def _mapping(path: str, text: str) -> Mapping[Any, Any]:
    """The mapping that a JSON or YAML file holds."""
    values = parse_json_or_yaml(text, f"{FLAG}: {path}")
    if not isinstance(values, dict):
        raise UserError(f"{FLAG}: {path} must hold a mapping domain: value, not a {type(values).__name__}")
    return values


def _in_order(path: str, mapping: Mapping[Any, Any], names_K: Sequence[str], may_know_more: bool) -> np.ndarray:
    """The values of `mapping` in the order of the domains, each checked."""
    missing = [name for name in names_K if name not in mapping]
    extra = [] if may_know_more else [str(name) for name in mapping if name not in names_K]
    if missing or extra:
        words = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(extra)}"] * bool(extra)
        raise UserError(
            f"{FLAG}: {path} {' and '.join(words)}, but the domains of this run are {', '.join(names_K)}; give each of "
            "them a value"
        )
    transfer_K = np.zeros(len(names_K))
    for k, name in enumerate(names_K):
        value = mapping[name]
        known = None if isinstance(value, bool) else number(str(value), f"{FLAG}: {path}: {name}")
        if known is None:
            raise UserError(f"{FLAG}: {path}: {name} must be a number from 0 to inf, own or shared, not {value!r}")
        transfer_K[k] = known
    return transfer_K
