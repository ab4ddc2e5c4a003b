"""What the page's script reads: one JSON object, and one block of float32 that its curves point into.

    {"names": […D], "groups": [{"series": D index, "members": [D index, …]}, …], "prior": ref, "arms": [
        {"name": …, "runs": […], "events": [{"step": …, "kind": …, "text": …, "run": …}, …],
         "curves": {"loss": {"step": [E], "value": ref, "below": ref, "above": ref}, …},
         "drawn": ref, "now": ref, "gap": {"what": …, "value": ref, "half": ref}}, …]}

A ref is [offset, rows], of numbers: so many rows of the curve's length, one a series. The block holds the first bytes
of all numbers, then the second ones, … (they compress better so), and numbers of 17 binary digits: 1e-5 of each at most
is lost.

Legend: as in series.py.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from typing import Any

import numpy as np

from ado_megatron.report.arms import Arm, final_gap
from ado_megatron.report.data import Event, Run
from ado_megatron.report.events import events
from ado_megatron.report.series import Columns, Curve, curves

MOST_EVENTS = 500  # of a run
_LOST = np.uint32(0x7F)  # the last bits of 23
_HALF = np.uint32(0x40)


class Block:
    """Numbers of all curves, one after another."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0

    def put(self, values: np.ndarray) -> list[int]:
        """Append an array as float32, D x E, row by row; returns its ref."""
        values = np.ascontiguousarray(np.atleast_2d(values), "<f4")
        self._parts.append(values.tobytes())
        self._length += values.size
        return [self._length - values.size, len(values)]

    def bytes(self) -> bytes:
        """All of it: rounded, byte by byte of little-endian float32."""
        bits = np.frombuffer(b"".join(self._parts), "<u4")
        rounded = np.where(np.isfinite(bits.view("<f4")), (bits + _HALF) & ~_LOST, bits)
        return rounded.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes()


def packed(data: bytes) -> str:
    """gzip in base64: what a browser unpacks itself. The same bytes in, the same text out."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def payload(arms: Sequence[Arm], columns: Columns) -> tuple[dict[str, Any], bytes]:
    """(the object, the block). JSON has no NaN; it stands in the block alone."""
    run, block = arms[0].runs[0], Block()
    shown = columns.shown_D.tolist()
    place = {k: d for d, k in enumerate(shown)}
    first_group = len(shown)
    return {
        "names": [run.names_K[k] for k in shown] + list(columns.groups),
        "groups": [{"series": first_group + g, "members": [place[k] for k in members if k in place]}
                   for g, members in enumerate(columns.groups.values())],
        "domains": first_group,
        "left_out": len(run.names_K) - len(shown),
        "prior": block.put(columns.sums(run.prior_K / run.prior_K.sum())[:, None]),
        "arms": [_arm(arm, made, arms[0], columns, block)
                 for arm, made in zip(arms, curves(arms, columns), strict=True)],
    }, block.bytes()  # fmt: skip


def _arm(arm: Arm, made: dict[str, Curve], first: Arm, columns: Columns, block: Block) -> dict[str, Any]:
    def curve(one: Curve) -> dict[str, Any]:
        parts = {"value": one.value_ExD, "below": one.below_ExD, "above": one.above_ExD}
        refs = {name: block.put(part.T) for name, part in parts.items() if part is not None}
        return {"step": one.step_E.astype(int).tolist(), **refs}

    drawn_K = np.sum([run.counts_SxK.sum(0) for run in arm.runs], 0)
    now_K = np.mean([run.weights_SxK[-1] for run in arm.runs], 0)
    return {
        "name": arm.name,
        "runs": [run.name for run in arm.runs],
        "curves": {name: curve(one) for name, one in made.items()},
        "events": [vars(event) | {"run": run.name} for run in arm.runs for event in told(run)],
        "drawn": block.put(columns.sums(drawn_K / max(drawn_K.sum(), 1))[:, None]),
        "now": block.put(columns.sums(now_K)[:, None]),
        "gap": None if arm is first else _gap(arm, first, columns, block),
    }


def told(run: Run) -> list[Event]:
    """What the page tells of a run: validations are in its curves, changes are never left out."""
    found = [event for event in events(run) if event.kind != "validation"]
    spare = len(found) - MOST_EVENTS
    return [event for place, event in enumerate(found) if place >= spare or event.kind == "change"]


def _gap(arm: Arm, first: Arm, columns: Columns, block: Block) -> dict[str, Any]:
    """The difference of the final losses, the first arm minus this one."""
    what, gap_K, _, _ = final_gap(first, arm)
    value, half = (block.put(columns.domains(part)[:, None]) for part in (gap_K.mean, gap_K.half))
    return {"what": what, "value": value, "half": half}
