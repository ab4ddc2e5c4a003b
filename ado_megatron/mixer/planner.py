"""Rank zero's half of the mixture: laws and policy in, rows of integers out.

Legend: K domains, C datasets (prefixes), S rows (blocks). No torch, no communication: the mixer carries what is decided
here to the other ranks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.plan_point import PlanPoint
from ado_megatron.mixer.regime import Regime, Regimes
from ado_megatron.mixer.resume import Saved, at_block
from ado_megatron.mixer.rows import Rows
from ado_megatron.npz import nest, unnest
from ado_megatron.policy.registry import NOT_BY_LAWS
from ado_megatron.policy.state import PolicyState
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.steer.journal import Entry, values_of
from ado_megatron.stream.row_layout import kernels

_CELLS = 1 << 22  # rows × datasets handed on at a time
_Remember = Callable[[PolicyState, PolicyState, int, np.ndarray], None]


class Planner:
    """Turns weights into rows, block by block, and remembers the weights of rows not yet measured.

    Under `shadow` the policy runs on the rows as they are laid out, but the prior decides them. Within one call of
    `plan` the laws are fixed and everything else is a deterministic recursion, so the state at any block is found again
    from the point where the call began.

    caps_C: samples of each dataset that the whole run may draw (None: no cap). num_blocks: of the whole run, for a
    policy that looks at its end (None: not known). target_K: what the mixture serves (None: what the options say).
    entries: the journal of what was changed by hand (regime.py).
    """

    def __init__(
        self, config: AdoConfig, domains: Domains, block_size: int, caps_C: np.ndarray | None = None,
        num_blocks: int | None = None, target_K: np.ndarray | None = None, entries: Iterable[Entry] = (),
    ):  # fmt: skip
        self.config, self.domains, self.block_size, self.caps_C = config, domains, block_size, caps_C
        self.regimes = Regimes(config, domains, block_size, caps_C, num_blocks, target_K, entries)
        self.target_K, self.num_blocks = self.regimes.target_K, num_blocks
        self.laws: Laws | None = None  # in force from the next row on
        num_datasets = len(domains.prefixes_C)
        self._at = PlanPoint.new(self.regimes.at(0).policy.initial_state(), np.zeros(num_datasets, dtype=np.int64))
        self._begins: list[PlanPoint] = []  # where the kept calls of `plan` began
        self._weights: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # block → weights in force, the policy's own
        self._notes: list[str] = []  # what the policy had to say, not yet taken

    @property
    def policy(self) -> Any:
        """What decides the weights of the next row."""
        return self.regimes.at(self._at.block).policy

    @property
    def state(self) -> PolicyState:
        """The policy's state before the next row, under the laws in force."""
        return self._settled(dataclasses.replace(self._at, laws=self.laws)).state

    @property
    def laid_out_C(self) -> np.ndarray:
        """Samples of each dataset in all rows so far, int64."""
        return self._at.laid_out_C

    def plan(self, num_rows: int) -> np.ndarray:
        """The next `num_rows` rows, counts_SxC (int32), under the present laws; advances past them.

        Raises UserError where the caps leave too few samples for a block.
        """
        if self.regimes.at(self._at.block).config.value("policy") not in NOT_BY_LAWS:
            kernels()  # loaded now, in the first call, not when the first laws are in force and the training waits
        self._at = dataclasses.replace(self._at, laws=self.laws)
        self._begins.append(self._at)
        rows_SxC, self._at = self._lay_out(self._at, num_rows, self._remember)
        return rows_SxC

    def rewind(self, block: int) -> None:
        """Stand before `block` again, which the last call of `plan` or `adopt` laid out, so that it is planned anew."""
        self._at = self._point(block)
        self._begins = [point for point in self._begins if point.block < block]
        self._weights = {b: pair for b, pair in self._weights.items() if b < block}

    # ---------------------------------------------------------------- planning in another process

    @property
    def next_block(self) -> int:
        """The block of the next row."""
        return self._at.block

    def hand_over(self) -> dict[str, np.ndarray]:
        """All that decides the rows from here on but the journal, for `take_over` in another process."""
        arrays = self._at.to_arrays()
        if self.laws is not None:
            arrays |= nest("in_force.", self.laws.to_arrays())
        return arrays

    def journal(self) -> str:
        """The journal as JSON."""
        return json.dumps(values_of(self.regimes.entries))

    def take_over(self, arrays: dict[str, np.ndarray]) -> None:
        """Stand where the planner stood that handed over."""
        laws = unnest("in_force.", arrays)
        self.laws = Laws.from_arrays(laws) if laws else None
        self._at = PlanPoint.from_arrays(arrays, self.config.given_transfer)

    def plan_for(self, num_rows: int) -> dict[str, np.ndarray]:
        """Plan, and say all that `adopt` needs where the rows were asked for."""
        first, rows_SxC = self._at.block, self.plan(num_rows)
        weights_Sx2xK = np.array([self._weights[block] for block in range(first, first + num_rows)])
        arrays = {"rows_SxC": rows_SxC, "weights_Sx2xK": weights_Sx2xK, "notes": np.array(self.take_notes(), dtype=str)}
        return arrays | {"journal": np.array(self.journal())} | nest("end.", self._at.to_arrays())

    def adopt(self, arrays: dict[str, np.ndarray], num_rows: int) -> np.ndarray | None:
        """The next rows as another process has planned them under the present laws, as if `plan` had been called here;
        None, and nothing has changed, where they are not `num_rows` rows from here on that can be right: the journal
        may have grown meanwhile."""
        end = PlanPoint.from_arrays(unnest("end.", arrays), self.config.given_transfer)
        rows_SxC, weights_Sx2xK = arrays["rows_SxC"], arrays["weights_Sx2xK"]
        laid_out_C = self._at.laid_out_C + rows_SxC.sum(axis=0, dtype=np.int64)
        caps_C = self.regimes.caps_over(self._at.block, self._at.block + num_rows)
        caps_C = laid_out_C if caps_C is None else caps_C
        if not (
            str(arrays["journal"]) == self.journal()
            and rows_SxC.shape == (num_rows, len(self.domains.prefixes_C)) and len(weights_Sx2xK) == num_rows
            and end.block == self._at.block + num_rows and (rows_SxC >= 0).all()
            and (rows_SxC.sum(axis=1) == self.block_size).all() and np.isfinite(weights_Sx2xK).all()
            and (end.laid_out_C == laid_out_C).all() and (laid_out_C <= np.maximum(caps_C, self._at.laid_out_C)).all()
        ):  # fmt: skip
            return None
        self._at = dataclasses.replace(self._at, laws=self.laws)
        self._begins.append(self._at)
        first = self._at.block
        self._weights.update((first + s, (own_K, shadow_K)) for s, (own_K, shadow_K) in enumerate(weights_Sx2xK))
        self._notes += arrays["notes"].tolist()
        self._at = end
        return rows_SxC

    # ---------------------------------------------------------------- what is remembered

    def _remember(self, state: PolicyState, before: PolicyState, blocks: int, in_force_K: np.ndarray) -> None:
        """Keep the weights of `blocks` blocks from that of `state` on, and what the policy has to say of them."""
        if state.note not in ("", before.note):
            self._notes.append(f"from block {state.step} on, {state.note}")
        self._weights.update(dict.fromkeys(range(state.step, state.step + blocks), (in_force_K, state.weights_K)))

    def _lay_out(self, at: PlanPoint, num_rows: int, remember: _Remember | None = None) -> tuple[np.ndarray, PlanPoint]:
        """The next rows from a point on, counts_SxC, and the point after them. Changes nothing but what `remember`
        does: it is told of every stretch of rows with the same weights."""
        stop, pieces = at.block + num_rows, []
        while True:
            piece_SxC, at = self._lay_out_piece(at, self.regimes.until(at.block, stop) - at.block, remember)
            pieces.append(piece_SxC)
            if at.block == stop:
                return pieces[0] if len(pieces) == 1 else np.concatenate(pieces), at

    def _lay_out_piece(self, at: PlanPoint, num_rows: int, remember: _Remember | None) -> tuple[np.ndarray, PlanPoint]:
        """`_lay_out` of rows under one regime."""
        regime, state, last_K, laws = self.regimes.at(at.block), at.state, at.last_K, at.laws
        held_K = self._held_K(at, regime)
        rows = Rows(self.domains, self.block_size, regime.caps_C, at, num_rows)
        fixed_K = self.domains.prior_K if self.config.shadow else None  # the policy decides nothing
        fixed_K = fixed_K if held_K is None else held_K
        if fixed_K is not None:  # all rows are known before the policy's first step
            fixed_K = regime.bent(fixed_K)
            rows.lay_out(num_rows, fixed_K)
        row, own = 0, at.block == 0
        while row < num_rows:
            before = state
            if last_K is not None:
                state, own = regime.policy.step(state, laws, last_K), True
            # A state that was not made by this policy may have weights of its own, for one block.
            until = regime.policy.constant_until(state, laws, state.step + num_rows - row) if own else state.step + 1
            blocks = min(until - state.step, max(1, _CELLS // len(rows.laid_out_C)))
            in_force_K = regime.bent(state.weights_K) if fixed_K is None else fixed_K
            if fixed_K is None:
                rows.lay_out(blocks, in_force_K)
            if remember is not None:
                remember(state, before, blocks, in_force_K)
            counts_SxK = rows.by_domain(row, row + blocks)
            if blocks > 1:
                state = self._after(regime.policy, state, laws, counts_SxK[:-1])
            last_K = counts_SxK[-1]
            row += blocks
        end = PlanPoint(at.block + num_rows, state, last_K, rows.credit_C, rows.laid_out_C, laws, held_K)
        return rows.counts_SxC, end

    def _held_K(self, at: PlanPoint, regime: Regime) -> np.ndarray | None:
        """The weights that are held from a point on: where a hold begins there, those of the row before, unprobed."""
        if not regime.hold or at.held_K is not None:
            return at.held_K if regime.hold else None
        decided_K = self.domains.prior_K if self.config.shadow else at.state.base_K
        return self.regimes.at(max(at.block - 1, 0)).bent(decided_K)

    @staticmethod
    def _after(policy: Any, state: PolicyState, laws: Laws | None, counts_SxK: np.ndarray) -> PolicyState:
        """The policy's steps over rows that leave its weights as they are."""
        if len(counts_SxK) > 1 and hasattr(policy, "step_constant"):
            return policy.step_constant(state, laws, counts_SxK)
        for counts_K in counts_SxK:
            state = policy.step(state, laws, counts_K)
        return state

    def _settled(self, at: PlanPoint) -> PlanPoint:
        """The same point after the policy's step over the row before it."""
        if at.last_K is None:
            return at
        held_K = self._held_K(at, self.regimes.at(at.block))
        state = self.regimes.at(at.block).policy.step(at.state, at.laws, at.last_K)
        return dataclasses.replace(at, state=state, last_K=None, held_K=held_K)

    def _point(self, block: int) -> PlanPoint:
        """What decided the rows from `block` on, which is planned or next: the recursion, run again from its begin."""
        point = max((p for p in [*self._begins, self._at] if p.block <= block), key=lambda p: p.block)
        return self._lay_out(point, block - point.block)[1] if point.block < block else point

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

    def to_arrays(self, block: int, stop: int | None = None) -> dict[str, np.ndarray]:
        """All state, for a sidecar from which rows before `block` are never laid out again. stop: the first row that
        is to be planned anew in any case; the next one by default."""
        end = self._at if stop is None else self._point(stop)
        block = min(block, end.block)
        points = [self._point(block), *(p for p in self._begins if block < p.block < end.block), end]
        blocks_S = np.array(sorted(b for b in self._weights if b < end.block), dtype=np.int64)
        weights_Sx2xK = np.array([self._weights[b] for b in blocks_S])
        arrays = {"points": np.int64(len(points)), "blocks_S": blocks_S, "weights_Sx2xK": weights_Sx2xK}
        for n, point in enumerate(points):
            arrays |= nest(f"point{n}.", point.to_arrays())
        if self.laws is not None:
            arrays |= nest("laws.", self.laws.to_arrays())
        return arrays

    def restore(self, saved: Saved) -> None:
        """Go on from a sidecar, with what it means to this run."""
        plan = saved.plan(lambda block: self.regimes.at(block).policy, self.config.given_transfer)
        self._begins, self._at, self.laws, self._weights = plan.begins, plan.at, plan.laws, plan.weights

    def begin_at(self, block: int, start_C: np.ndarray) -> None:
        """Plan from `block` on, after start_C samples of each dataset that others laid out; laws and policy are as they
        are (those of a sidecar, or the first)."""
        at = self._settled(dataclasses.replace(self._at, laws=self.laws))
        state = dataclasses.replace(at.state, step=block, samples_K=self.domains.by_domain(start_C))
        state = at_block(self.regimes.at(block).policy, state)
        self._at = dataclasses.replace(PlanPoint.new(state, start_C, self.laws), held_K=at.held_K)
