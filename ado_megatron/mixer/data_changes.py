"""What has become of the data since a sidecar was written: which datasets are new, gone, larger, or in another place.

Legend: C datasets (one per prefix).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.errors import UserError

KINDS = ("added", "removed", "grown", "moved")
OTHER = "other"  # shorter, or of other contents: no word accepts that
_SHOWN = 3  # datasets that a sentence names
# The frameworks know cached indices by the path of the data, not by what it says.
_STALE = " (or it has grown, but is read by cached indices of before: remove these)"


def accepted(text: str | None) -> frozenset[str]:
    """The kinds that --ado-accept-data names. Raises UserError for a word that is none."""
    kinds = frozenset(filter(None, (word.strip() for word in (text or "").split(","))))
    if kinds - set(KINDS):
        raise UserError(f"--ado-accept-data {text}: {min(kinds - set(KINDS))!r} is none of {', '.join(KINDS)}")
    return kinds


def places(prefixes: tuple[str, ...] | list[str]) -> list[str]:
    """Where each prefix lies: its path from the root, without links of its folder. No file need be there."""
    split = [os.path.split(os.path.abspath(prefix)) for prefix in prefixes]
    return [os.path.join(_real(folder), name) for folder, name in split]


_real = functools.lru_cache(maxsize=4096)(os.path.realpath)  # of each folder once, not of thousands of files


class DataChanges:
    """The datasets of a run held against those of a sidecar (meta, base_id_C).

    old_C: the saved dataset that each continues, or -1: a new one, or one of another length. kinds: of KINDS and OTHER,
    those that occur, with what to say of each dataset. A path as it was given counts as the same place, and so does
    another path to the same place.
    """

    def __init__(self, meta: dict[str, Any], base_id_C: np.ndarray, domains: Domains):
        self._prefixes, self._places = meta["prefixes_C"], meta.get("paths_C") or places(meta["prefixes_C"])
        self._lengths, self._contents = meta["lengths_C"], meta.get("content_C") or [0] * len(base_id_C)  # 0: not known
        self._domains, self._places_C = domains, places(domains.prefixes_C)
        num = len(domains.prefixes_C)
        self._content_C = [0] * num if domains.content_C is None else domains.content_C.tolist()
        self._counterpart_C = np.full(num, -1)
        self._pair([int(base) for base in base_id_C], domains.stream_id_C.tolist())
        same_C = np.array([old >= 0 and self._same_length(c, old) for c, old in enumerate(self._counterpart_C)], bool)
        self.old_C = np.where(same_C, self._counterpart_C, -1)
        self.kinds = self._kinds()

    def _pair(self, base_ids: list[int], base_id_C: list[int]) -> None:
        """What says and is the same comes before what merely stands in the same place or has the same name."""
        text = list(self._prefixes), list(self._domains.prefixes_C)
        keys: list[tuple[list, list]] = [text, (self._places, self._places_C), (base_ids, base_id_C)]
        content = [content or None for content in self._contents], [content or None for content in self._content_C]
        for one in [*keys, content]:
            self._match(*one, self._is_same)
        for one in keys:
            self._match(*one, lambda c, old: True)

    def _match(self, keys: list, key_C: list, fits: Callable[[int, int], bool]) -> None:
        """Give every dataset without a counterpart the first saved one of the same key that is free and fits."""
        taken = set(self._counterpart_C.tolist())
        free: dict[Hashable, list[int]] = {}
        for old, key in enumerate(keys):
            if old not in taken and key is not None:
                free.setdefault(key, []).append(old)
        for c in np.flatnonzero(self._counterpart_C < 0):
            olds = free.get(key_C[c], [])
            found = next((old for old in olds if fits(int(c), old)), None)
            if found is not None:
                self._counterpart_C[c] = found
                olds.remove(found)

    def _same_length(self, c: int, old: int) -> bool:
        return int(self._domains.lengths_C[c]) == self._lengths[old]

    def _is_same(self, c: int, old: int) -> bool:
        """Whether a dataset has the length and, where both are known, the content of a saved one."""
        ours, theirs = self._content_C[c], self._contents[old]
        return self._same_length(c, old) and (ours == theirs or not (ours and theirs))

    def _kinds(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {kind: [] for kind in (*KINDS, OTHER)}
        for c, (prefix, old) in enumerate(zip(self._domains.prefixes_C, self._counterpart_C.tolist(), strict=True)):
            if old < 0:
                found["added"].append(f"without {prefix}")
            elif not self._same_length(c, old):
                kind = "grown" if self._domains.lengths_C[c] > self._lengths[old] else OTHER
                found[kind].append(f"{prefix} of {self._lengths[old]} samples, now {self._domains.lengths_C[c]}")
            elif not self._is_same(c, old):
                found[OTHER].append(f"{prefix} of other contents{_STALE}")
            elif prefix != self._prefixes[old] and self._places_C[c] != self._places[old]:
                found["moved"].append(f"{self._prefixes[old]}, now at {prefix}")
        gone = set(range(len(self._prefixes))) - set(self._counterpart_C.tolist())
        found["removed"] = [f"{self._prefixes[old]}, which is not in this blend" for old in sorted(gone)]
        return {kind: texts for kind, texts in found.items() if texts}

    @property
    def text(self) -> str:
        """What the data were, as far as they are others now."""
        texts = [text for texts in self.kinds.values() for text in texts]
        more = f", and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        return ", ".join(texts[:_SHOWN]) + more or "of other contents, or grouped in another way"
