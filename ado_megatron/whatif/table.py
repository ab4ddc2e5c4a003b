"""The words and numbers of an answer.

Legend: K domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ado_megatron.report.table import numbers
from ado_megatron.scaling_law.transfer_option import ESTIMATE
from ado_megatron.steer.command import describe
from ado_megatron.steer.journal import Entry
from ado_megatron.tables import text_table
from ado_megatron.whatif.course import Course
from ado_megatron.whatif.outlook import Z95, Outlook
from ado_megatron.whatif.situation import Situation

FAR = 4.0  # times the samples that the laws have seen
_NEW = 0.1  # of a share: how far outside those seen it is called new
_MOST_NAMES = 8


@dataclass(frozen=True, eq=False)
class Answer:
    """What was asked, and what the laws say. entry: the proposal, as a journal has it. outlook: None without laws."""

    situation: Situation
    entry: Entry
    now: Course
    other: Course
    outlook: Outlook | None


def text(answer: Answer) -> str:
    """The answer for people."""
    situation, now, found = answer.situation, answer.now, answer.outlook
    head = (
        f"{situation.path.name}: laws of step {situation.step:,}; blocks {now.first:,} to {now.until:,} can still be "
        f"changed\nproposal: {describe(answer.entry)}"
    )
    lines = [head, "", text_table(_columns(answer), {"domain"})]
    if found is not None and np.isfinite(found.other_K).any():
        low, high = (found.target_difference + sign * Z95 * found.target_error for sign in (-1, 1))
        verdict = "cannot be told apart from none" if low <= 0 <= high else "better" if high < 0 else "worse"
        lines += ["", f"target loss {found.target_now:.4f} as it goes on, {found.target_other:.4f} as proposed: "
                  f"{found.target_difference:+.4f} ± {found.target_error:.4f} nats (95 %: {low:+.4f} to {high:+.4f}), "
                  f"{verdict}"]  # fmt: skip
    lines += [f"caps: {line}" for line in forbidden(answer)]
    return "\n".join([*lines, *(f"note: {line}" for line in doubts(answer))])


def as_json(answer: Answer) -> dict[str, Any]:
    """The answer as plain values; losses in nats, errors are standard errors, null where nothing is known."""
    situation, found = answer.situation, answer.outlook
    courses = {
        name: {"share_K": _plain(course.share_K), "drawn_K": _plain(course.drawn_K),
               "epochs_K": _plain(course.drawn_K / np.maximum(situation.length_K, 1)),
               "out_block_K": [int(block) if block >= 0 else None for block in course.out_K]}
        for name, course in (("now", answer.now), ("proposal", answer.other))
    }  # fmt: skip
    losses: dict[str, Any] = {}
    if found is not None:
        courses["now"] |= {"loss_K": _plain(found.now_K), "loss_error_K": _plain(found.now_error_K)}
        courses["proposal"] |= {"loss_K": _plain(found.other_K), "loss_error_K": _plain(found.other_error_K)}
        losses = {
            "difference_K": _plain(found.difference_K), "difference_error_K": _plain(found.difference_error_K),
            "target_now": found.target_now, "target_proposal": found.target_other,
            "target_difference": found.target_difference, "target_error": found.target_error,
            "target_without_law": found.unknown,
        }  # fmt: skip
    return {
        "run": str(situation.path), "step": situation.step, "first_block": answer.now.first,
        "until_block": answer.now.until, "what": answer.entry.what, "names_K": list(situation.domains.names_K),
        **courses, **losses, "caps": forbidden(answer), "notes": doubts(answer),
    }  # fmt: skip


def _columns(answer: Answer) -> list[tuple[str, list[str]]]:
    situation, now, other, found = answer.situation, answer.now, answer.other, answer.outlook
    length_K = np.maximum(situation.length_K, 1)
    table = [
        ("domain", list(situation.domains.names_K)),
        ("share", numbers(now.share_K, ".2%")), ("then", numbers(other.share_K, ".2%")),
        ("epochs", numbers(now.drawn_K / length_K, ".2f")), ("then", numbers(other.drawn_K / length_K, ".2f")),
    ]  # fmt: skip
    if (now.out_K >= 0).any() or (other.out_K >= 0).any():
        table += [("runs out", _blocks(now.out_K)), ("then", _blocks(other.out_K))]
    if found is not None:
        table += [
            ("loss", _with_error(found.now_K, found.now_error_K, "")),
            ("then", _with_error(found.other_K, found.other_error_K, "")),
            ("difference", _with_error(found.difference_K, found.difference_error_K, "+")),
        ]
    return table


def _blocks(out_K: np.ndarray) -> list[str]:
    return [f"step {block + 1:,}" if block >= 0 else "–" for block in out_K]


def _with_error(value_K: np.ndarray, error_K: np.ndarray, sign: str) -> list[str]:
    return [
        f"{value:{sign}.4f} ± {error:.4f}" if np.isfinite(value) else "–"
        for value, error in zip(value_K, error_K, strict=True)
    ]


def forbidden(answer: Answer) -> list[str]:
    """What the caps take from the proposal: domains that come to their cap before the end."""
    situation, other = answer.situation, answer.other
    start_K = other.drawn_K - other.share_K * (other.until - other.first) * situation.block_size
    lines = []
    for k in np.flatnonzero(other.out_K >= 0):
        length = max(situation.length_K[k], 1)
        asked = (start_K[k] + other.asked_K[k]) / length
        lines.append(
            f"{situation.domains.names_K[k]} comes to its cap of {other.drawn_K[k] / length:.2f} epochs at step "
            f"{other.out_K[k] + 1:,}; the proposal asks for {asked:.2f} by step {other.until:,}, the others take over"
        )
    return lines


def doubts(answer: Answer) -> list[str]:
    """What the answer rests on that the run has not shown."""
    situation, names = answer.situation, answer.situation.domains.names_K
    if answer.outlook is None:
        return ["no law was fitted by the newest checkpoint, so nothing can be said of losses"]
    lines = []
    unknown = [name for name, loss in zip(names, answer.outlook.other_K, strict=True) if not np.isfinite(loss)]
    if unknown:
        lines.append(
            f"no law is identified for {_some(unknown)}: {answer.outlook.unknown:.1%} of the target is left out"
        )
    new = [f"{names[k]} {answer.other.share_K[k]:.1%} ({low:.1%} to {high:.1%})" for k, low, high in new_shares(answer)]
    if new:
        lines.append(f"extrapolation: shares that this run has never seen: {_some(new)}")
    reach = float(answer.other.drawn_K.sum()) / max(float(situation.rows["total_T"][-1]), 1.0)
    if reach > FAR:
        lines.append(f"extrapolation: the end is {reach:.1f} times the samples that the laws were fitted on")
    if situation.config.transfer_text != ESTIMATE:
        lines.append(
            "how much domains help one another was not measured in this run (--ado-transfer estimate does); the errors "
            "allow for what is usual"
        )
    again = [name for name, k in zip(names, range(len(names)), strict=True)
             if answer.other.drawn_K[k] > 4 * max(situation.length_K[k], 1)]  # fmt: skip
    if again:
        lines.append(f"extrapolation: more than 4 epochs of {_some(again)}; what repeats are worth is not measured")
    return lines


def new_shares(answer: Answer) -> list[tuple[int, float, float]]:
    """(domain, least, greatest share seen) of those whose proposed share was never seen in this run."""
    rows = answer.situation.rows
    total_T, n_TxK = rows["total_T"], rows["n_TxK"]
    found = []
    for k, share in enumerate(answer.other.share_K):
        seen = rows["tokens_TxK"][:, k] > 0
        step = np.diff(total_T[seen])
        if not (step > 0).any():
            continue
        shares = np.diff(n_TxK[seen, k])[step > 0] / step[step > 0]
        low, high = float(shares.min()), float(shares.max())
        if share < low * (1 - _NEW) or share > high * (1 + _NEW):
            found.append((k, low, high))
    return found


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
