"""Where a run stands: its newest sidecar, and the header of its metrics.jsonl.

Legend: K domains, C datasets, T rows of the history.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import with_share
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.measure.metrics import read_header
from ado_megatron.measure.record import MOST, Record
from ado_megatron.mixer.sidecar import read_sidecar
from ado_megatron.npz import nest, unnest
from ado_megatron.scaling_law.history import LossHistory
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.steer.journal import NAME, Entry, entries_of, read_journal

_NAME = re.compile(r"state_(\d+)\.ado")


@dataclasses.dataclass(frozen=True, eq=False)
class Situation:
    """A run after `step` steps. point: where its planner stands, at the first block that is not planned yet, as
    Planner.hand_over gives it. rows: what its laws can be held against (LossHistory.snapshot)."""

    path: Path
    step: int
    config: AdoConfig  # resolved
    domains: Domains
    block_size: int
    num_blocks: int
    caps_C: np.ndarray | None
    target_K: np.ndarray | None
    point: Mapping[str, np.ndarray]
    rows: Mapping[str, np.ndarray]
    entries: Sequence[Entry] = ()  # the journal

    @property
    def laws(self) -> Laws | None:
        """The laws in force; None before the first."""
        arrays = unnest("in_force.", dict(self.point))
        return Laws.from_arrays(arrays, self.config.given_transfer) if arrays else None

    @property
    def first_block(self) -> int:
        """The first block that is not planned yet."""
        return int(self.point["block"])

    @property
    def length_K(self) -> np.ndarray:
        """Samples of an epoch of each domain."""
        return self.by_domain(self.domains.lengths_C)

    def by_domain(self, value_C: np.ndarray) -> np.ndarray:
        """Summed over the datasets of each domain that have a share in it."""
        return with_share(self.domains.domain_of_C, self.domains.share_C, value_C)

    @classmethod
    def of_run(cls, path: str | Path) -> Situation:
        """UserError, one sentence, for a directory without a sidecar, or files that do not fit together."""
        run_dir = Path(path).expanduser()
        sidecar = newest_sidecar(run_dir)
        header = read_header(run_dir / "ado" / "metrics.jsonl")
        meta, arrays = read_sidecar(sidecar)
        domains = _domains(header, meta, arrays, sidecar)
        planner = unnest("planner/", arrays)
        if "points" not in planner:
            raise UserError(f"the sidecar {sidecar} holds no plan; give a run of this version")
        point = unnest(f"point{int(planner['points']) - 1}.", planner)
        point |= nest("in_force.", unnest("laws.", planner))
        history = LossHistory.from_arrays(unnest("history/", arrays))
        num, caps = len(domains.prefixes_C), header.get("caps_C")
        return cls(
            path=run_dir, step=int(meta["step"]), config=AdoConfig.from_dict(meta["config"]).resolved(),
            domains=domains, block_size=int(meta["block_size"]), num_blocks=header.integer("num_blocks", 1),
            caps_C=None if caps is None else header.array("caps_C", num, low=0, high=2.0**63).astype(np.int64),
            target_K=None if header.get("target_K") is None else header.array("target_K", len(domains.names_K), low=0),
            point=point, rows=history.snapshot(history.last_step + 1), entries=_journal(meta, sidecar),
        )  # fmt: skip


def _journal(meta: Mapping[str, Any], sidecar: Path) -> list[Entry]:
    """What was changed by hand, up to now: the file beside the sidecar may know more than it."""
    saved = entries_of(meta["journal"], sidecar) if "journal" in meta else []
    later = read_journal(sidecar.parent / NAME)
    known = {entry.id for entry in saved}
    return saved + [entry for entry in later if entry.id not in known]


def newest_sidecar(run_dir: Path) -> Path:
    """The sidecar of the newest checkpoint. UserError where there is none."""
    folder = run_dir / "ado"
    if not folder.is_dir():
        raise UserError(f"{run_dir} is no run directory: there is no {folder}")
    found = {int(match.group(1)): file for file in folder.iterdir() if (match := _NAME.fullmatch(file.name))}
    if not found:
        raise UserError(f"{run_dir} has no checkpoint yet, and the laws are read from its sidecar; save one first")
    return found[max(found)]


def _domains(header: Record, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], sidecar: Path) -> Domains:
    """The domains, of which the sidecar says the identity and the header the rest."""
    names, prefixes = header.texts("domains"), header.texts("columns")
    if names != meta["names_K"] or prefixes != meta["prefixes_C"]:
        raise UserError(
            f"{header.path} and {sidecar} are of runs with other data; the newest checkpoint is not of this run: save "
            "one"
        )
    num = len(prefixes)
    domain_of_C = header.array("domain_of_C", num, low=0, high=len(names) - 1, whole=True)
    lengths_C = header.array("lengths_C", num, low=0, high=MOST, whole=True)
    prior_K, share_C = header.array("prior_K", len(names), low=0), header.array("share_C", num, low=0)
    return Domains(tuple(names), tuple(prefixes), domain_of_C, share_C, lengths_C, prior_K, arrays["base_id_C"])
