"""Records of metrics.jsonl for a run whose domains are others now: the file of a resumed run is one of its own domains.

Legend: K domains, C datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What a domain has that was not there yet; other numbers are not known.
_NONE_YET = frozenset(("counts_K", "tokens_K", "weights_K", "shadow_weights_K", "epochs_C"))


def carried(record: dict[str, Any], old_K: Sequence[int], old_C: Sequence[int]) -> dict[str, Any] | None:
    """A record with the values of each domain (dataset) k from where they stood, old_K[k]; -1: it was not there.

    What is by domain is a list under a name that ends in K (`loss_K`, `stderr_Kx3`), by dataset in C. None where
    nothing of an interval is left, or where the record was of yet other domains.
    """
    values = dict(record)
    for name, value in record.items():
        kind = name.rpartition("_")[2][:1]
        if kind not in ("K", "C") or not isinstance(value, list):
            continue
        old = old_K if kind == "K" else old_C
        if max(old, default=-1) >= len(value):
            return None
        values[name] = [value[n] if n >= 0 else _absent(name, value) for n in old]
    return None if values["type"] == "step" and not any(values.get("weights_K") or ()) else values


def _absent(name: str, value: list) -> Any:
    """What stands for a domain that was not there."""
    like = value[0] if value else None
    if isinstance(like, list):
        return [_absent(name, like) for _ in like]
    if isinstance(like, bool | str):
        return type(like)()
    return 0 if name in _NONE_YET else None
