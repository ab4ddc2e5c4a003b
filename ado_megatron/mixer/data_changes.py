"""What has become of the data since a sidecar was written: which datasets are new, gone, larger, or under another name.

Legend: C datasets (one per prefix).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.errors import UserError

KINDS = ("added", "removed", "grown", "moved")


def accepted(text: str | None) -> frozenset[str]:
    """The kinds that --ado-accept-data names. Raises UserError for a word that is none."""
    kinds = frozenset(filter(None, (word.strip() for word in (text or "").split(","))))
    if kinds - set(KINDS):
        raise UserError(f"--ado-accept-data {text}: {min(kinds - set(KINDS))!r} is none of {', '.join(KINDS)}")
    return kinds


def continues_C(meta: dict[str, Any], base_id_C: np.ndarray, domains: Domains) -> np.ndarray:
    """For each dataset, the saved one that it continues, or -1: a new one, or one of another length.

    The same name (the last component of its path) and length; or, of those that have no such counterpart, the one with
    the same content, which was moved. meta, base_id_C: of the sidecar.
    """
    lengths_C, content_C = np.asarray(meta["lengths_C"]), meta.get("content_C")
    by_name = {int(base): c for c, base in enumerate(base_id_C)}
    old_C = np.array([by_name.get(int(base), -1) for base in domains.stream_id_C])
    named_C = old_C >= 0
    old_C = np.where(lengths_C[old_C] == domains.lengths_C, old_C, -1)
    if content_C is None or domains.content_C is None:
        return old_C
    gone = set(range(len(base_id_C))) - {by_name[int(base)] for base in domains.stream_id_C[named_C]}
    of_content: dict[tuple[int, int], list[int]] = {}
    for old in sorted(gone):
        of_content.setdefault((int(content_C[old]), int(lengths_C[old])), []).append(old)
    for c in np.flatnonzero(~named_C):
        same = of_content.get((int(domains.content_C[c]), int(domains.lengths_C[c])), [])
        if same:
            old_C[c] = same.pop(0)
    return old_C


def changes(meta: dict[str, Any], base_id_C: np.ndarray, domains: Domains) -> dict[str, list[str]]:
    """The prefixes of each kind of change, of KINDS and "other" (shorter, or of other contents); kinds that occur."""
    old_C, by_name = continues_C(meta, base_id_C, domains), {int(base): c for c, base in enumerate(base_id_C)}
    content_C = meta.get("content_C")
    found: dict[str, list[str]] = {kind: [] for kind in (*KINDS, "other")}
    for c, (prefix, base) in enumerate(zip(domains.prefixes_C, domains.stream_id_C, strict=True)):
        named = by_name.get(int(base), -1)
        if named < 0:
            found["added" if old_C[c] < 0 else "moved"].append(prefix)
        elif old_C[c] < 0:
            found["grown" if domains.lengths_C[c] > meta["lengths_C"][named] else "other"].append(prefix)
        elif content_C is not None and domains.content_C is not None and content_C[named] != domains.content_C[c]:
            found["other"].append(prefix)
    kept = set(old_C.tolist()) | {by_name.get(int(base), -1) for base in domains.stream_id_C}
    found["removed"] = [prefix for c, prefix in enumerate(meta["prefixes_C"]) if c not in kept]
    return {kind: prefixes for kind, prefixes in found.items() if prefixes}
