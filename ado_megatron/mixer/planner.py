"""Rank zero's half of the mixture: laws and policy in, rows of integers out.

Legend: K domains, C columns (prefixes), S rows (blocks). No torch, no communication: the mixer carries what is decided
here to the other ranks.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import UNLIMITED, with_share
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.resume import Saved
from ado_megatron.mixer.sidecar import unnest
from ado_megatron.policy import PolicyContext, make_policy
from ado_megatron.policy.state import PolicyState
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.stream.schedule import apportion


@dataclasses.dataclass(frozen=True)
class _Point:
    """All that decides the rows from `block` on.

    The policy has not yet stepped over the row before (last_K, its samples by domain; -1 before the first row): that
    step makes the weights of `block`, so it is taken under the laws of `block`.
    """

    block: int
    state: PolicyState
    last_K: np.ndarray
    credit_C: np.ndarray
    laid_out_C: np.ndarray
    laws: Laws | None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every field as an array, for a checkpoint."""
        arrays = {"block": np.int64(self.block), "last_K": self.last_K}
        arrays |= {"credit_C": self.credit_C, "laid_out_C": self.laid_out_C}
        arrays |= {f"state.{name}": value for name, value in self.state.to_arrays().items()}
        if self.laws is not None:
            arrays |= {f"laws.{name}": value for name, value in self.laws.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], transfer: float) -> _Point:
        """transfer: that of laws that were saved before laws had one."""
        state, laws = (_under(prefix, arrays) for prefix in ("state.", "laws."))
        return cls(
            int(arrays["block"]), PolicyState.from_arrays(state), arrays["last_K"].copy(), arrays["credit_C"].copy(),
            arrays["laid_out_C"].copy(), Laws.from_arrays(laws, transfer) if laws else None,
        )  # fmt: skip


class Planner:
    """Turns weights into rows, block by block, and remembers the weights of rows not yet measured.

    Under `shadow` the policy runs on the rows as they are laid out, but the prior decides them. Within one call of
    `plan` the laws are fixed and everything else is a deterministic recursion, so the state at any block is found again
    from the point where the call began.

    caps_C: samples of each column that the whole run may draw (None: no cap). num_blocks: of the whole run, for a
    policy that looks at its end (None: not known).
    """

    def __init__(
        self, config: AdoConfig, domains: Domains, block_size: int, caps_C: np.ndarray | None = None,
        num_blocks: int | None = None,
    ):  # fmt: skip
        self.config, self.domains, self.block_size, self.caps_C = config, domains, block_size, caps_C
        acting = dataclasses.replace(config, shadow=False)  # in shadow the policy still runs, it only decides nothing
        self.policy = make_policy(acting, _context(config, domains, block_size, caps_C, num_blocks))
        self.laws: Laws | None = None  # in force from the next row on
        columns = len(domains.prefixes_C)
        zeros_C = np.zeros(columns, dtype=np.int64)
        nothing_K = np.full(len(domains.names_K), -1, dtype=np.int64)
        self._at = _Point(0, self.policy.initial_state(), nothing_K, np.zeros(columns), zeros_C, None)
        self._begins: list[_Point] = []  # where the kept calls of `plan` began
        self._weights: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # block → weights in force, the policy's own
        self._notes: list[str] = []  # what the policy had to say, not yet taken

    @property
    def state(self) -> PolicyState:
        """The policy's state before the next row, under the laws in force."""
        return self._settled(dataclasses.replace(self._at, laws=self.laws)).state

    @property
    def laid_out_C(self) -> np.ndarray:
        """Samples of each column in all rows so far, int64."""
        return self._at.laid_out_C

    def plan(self, num_rows: int) -> np.ndarray:
        """The next `num_rows` rows, counts_SxC (int32), under the present laws; advances past them."""
        self._at = dataclasses.replace(self._at, laws=self.laws)
        self._begins.append(self._at)
        rows_SxC = np.zeros((num_rows, len(self.domains.prefixes_C)), dtype=np.int32)
        for s in range(num_rows):
            rows_SxC[s] = self._plan_row()
        return rows_SxC

    def _plan_row(self) -> np.ndarray:
        before = self._at.state.note
        self._at = self._settled(self._at)
        if self._at.state.note not in ("", before):
            self._notes.append(f"from block {self._at.block} on, {self._at.state.note}")
        self._weights[self._at.block] = (self._in_force_K(self._at), self._at.state.weights_K)
        self._at, counts_C = self._advance(self._at)
        return counts_C

    def _settled(self, at: _Point) -> _Point:
        """The same point after the policy's step over the row before it."""
        if at.last_K[0] < 0:
            return at
        state = self.policy.step(at.state, at.laws, at.last_K)
        return dataclasses.replace(at, state=state, last_K=np.full_like(at.last_K, -1))

    def _in_force_K(self, settled: _Point) -> np.ndarray:
        return self.domains.prior_K if self.config.shadow else settled.state.weights_K

    def _advance(self, settled: _Point) -> tuple[_Point, np.ndarray]:
        """The point after the next row, and that row."""
        weights_C = self.domains.weights_C(self._in_force_K(settled))
        remaining_C = None if self.caps_C is None else self.caps_C - settled.laid_out_C
        domain_of_C = self.domains.domain_of_C
        counts_C, credit_C = apportion(weights_C, self.block_size, settled.credit_C, remaining_C, domain_of_C)
        counts_K = self.domains.by_domain(counts_C)
        laid_out_C = settled.laid_out_C + counts_C
        return _Point(settled.block + 1, settled.state, counts_K, credit_C, laid_out_C, settled.laws), counts_C

    def _point(self, block: int) -> _Point:
        """What decided the rows from `block` on, which is planned or next: the recursion, run again from its begin."""
        point = max((p for p in [*self._begins, self._at] if p.block <= block), key=lambda p: p.block)
        while point.block < block:
            point, _ = self._advance(self._settled(point))
        return point

    def weights_K(self, block: int) -> np.ndarray:
        """The weights in force in `block`; the prior where nothing is remembered of it."""
        return self._weights.get(block, (self.domains.prior_K,))[0]

    def shadow_K(self, block: int) -> np.ndarray:
        """The policy's own weights for `block`, whether or not they decide its row."""
        return self._weights.get(block, (None, self.domains.prior_K))[1]

    def take_notes(self) -> list[str]:
        """What the policy had to say since the last call, in order."""
        notes, self._notes = self._notes, []
        return notes

    def forget_before(self, block: int) -> None:
        """Drop what is remembered only for blocks before `block`."""
        for b in [b for b in self._weights if b < block]:
            del self._weights[b]
        while len(self._begins) > 1 and self._begins[1].block <= block:
            del self._begins[0]

    def to_arrays(self, block: int) -> dict[str, np.ndarray]:
        """All state, for a sidecar from which rows before `block` are never laid out again."""
        block = min(block, self._at.block)
        points = [self._point(block), *(p for p in self._begins if p.block > block), self._at]
        blocks_S = np.array(sorted(self._weights), dtype=np.int64)
        weights_Sx2xK = np.array([self._weights[b] for b in blocks_S])
        arrays = {"points": np.int64(len(points)), "blocks_S": blocks_S, "weights_Sx2xK": weights_Sx2xK}
        for n, point in enumerate(points):
            arrays |= {f"point{n}.{name}": value for name, value in point.to_arrays().items()}
        if self.laws is not None:
            arrays |= {f"laws.{name}": value for name, value in self.laws.to_arrays().items()}
        return arrays

    def restore(self, saved: Saved) -> None:
        """Go on from a sidecar: after the rows that were planned then or, where they are void, at the checkpoint."""
        arrays = unnest("planner", saved.arrays)
        transfer = self.config.given_transfer
        points = [_Point.from_arrays(_under(f"point{n}.", arrays), transfer) for n in range(int(arrays["points"]))]
        laws = _under("laws.", arrays)
        self.laws = Laws.from_arrays(laws, transfer) if laws else None
        self._begins, self._at = (points[:-1], points[-1]) if saved.keep_rows else ([], points[0])
        if not saved.same_data:
            self._at = self._remapped(points[0], saved.old_column_C(), saved.old_domain_K())
            self.laws = self._at.laws
            return
        pairs = zip(arrays["blocks_S"], arrays["weights_Sx2xK"], strict=True)
        self._weights = {int(b): (own_K, shadow_K) for b, (own_K, shadow_K) in pairs if b < self._at.block}

    def begin_at(self, block: int, start_C: np.ndarray) -> None:
        """Plan from `block` on, after start_C samples of each column that others laid out; laws and policy are as they
        are (those of a sidecar, or the first)."""
        at = self._settled(dataclasses.replace(self._at, laws=self.laws))
        state = dataclasses.replace(at.state, step=block, samples_K=self.domains.by_domain(start_C))
        self._at = dataclasses.replace(
            at, block=block, state=state, laid_out_C=start_C, credit_C=np.zeros(len(start_C))
        )

    def _remapped(self, point: _Point, old_C: np.ndarray, old_K: np.ndarray) -> _Point:
        """A saved point for other data: known columns and laws keep what they had, the policy starts from the prior."""
        state = dataclasses.replace(
            self.policy.initial_state(), step=point.state.step,
            samples_K=np.where(old_K >= 0, point.state.samples_K[old_K], 0),
        )  # fmt: skip
        laws = point.laws
        if laws is not None:
            params_Kx3 = np.where((old_K >= 0)[:, None], laws.params()[old_K], np.nan)
            laws = Laws.given(params_Kx3, np.where(old_K >= 0, laws.transfer_K[old_K], self.config.given_transfer))
        laid_out_C = np.where(old_C >= 0, point.laid_out_C[old_C], 0)
        nothing_K = np.full(len(old_K), -1, dtype=np.int64)
        return _Point(point.block, state, nothing_K, np.zeros(len(old_C)), laid_out_C, laws)


def _context(
    config: AdoConfig, domains: Domains, block_size: int, caps_C: np.ndarray | None, num_blocks: int | None
) -> PolicyContext:
    """What the policy may know of this run."""
    size_K = np.bincount(domains.domain_of_C, domains.lengths_C.astype(np.float64), minlength=len(domains.names_K))
    cap_K = None
    if caps_C is not None:
        capped_K = with_share(domains.domain_of_C, domains.share_C, caps_C)
        cap_K = np.where(capped_K >= UNLIMITED, np.inf, capped_K)
    return PolicyContext(
        domains.prior_K, natural_K=size_K / size_K.sum(), names_K=domains.names_K, block_size=block_size,
        num_blocks=num_blocks, cap_K=cap_K, seed=config.seed,
        length_K=with_share(domains.domain_of_C, domains.share_C, domains.lengths_C),
    )  # fmt: skip


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
