"""Rank zero's half of the mixture: laws and policy in, rows of integers out.

Legend: K domains, C datasets (prefixes), S rows (blocks). No torch, no communication: the mixer carries what is decided
here to the other ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import UNLIMITED, with_share
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.plan_point import PlanPoint
from ado_megatron.mixer.resume import Saved, at_block
from ado_megatron.mixer.rows import Rows
from ado_megatron.npz import nest, unnest
from ado_megatron.policy import PolicyContext, make_policy
from ado_megatron.policy.registry import WITHOUT_LAWS
from ado_megatron.policy.state import PolicyState
from ado_megatron.policy.target import resolve_target
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.stream.row_layout import kernels

_CELLS = 1 << 22  # rows × datasets handed on at a time
_Remember = Callable[[PolicyState, PolicyState, int], None]


class Planner:
    """Turns weights into rows, block by block, and remembers the weights of rows not yet measured.

    Under `shadow` the policy runs on the rows as they are laid out, but the prior decides them. Within one call of
    `plan` the laws are fixed and everything else is a deterministic recursion, so the state at any block is found again
    from the point where the call began.

    caps_C: samples of each dataset that the whole run may draw (None: no cap). num_blocks: of the whole run, for a
    policy that looks at its end (None: not known). target_K: what the mixture serves (None: what the options say).
    """

    def __init__(
        self, config: AdoConfig, domains: Domains, block_size: int, caps_C: np.ndarray | None = None,
        num_blocks: int | None = None, target_K: np.ndarray | None = None,
    ):  # fmt: skip
        self.config, self.domains, self.block_size, self.caps_C = config, domains, block_size, caps_C
        acting = dataclasses.replace(config, shadow=False)  # in shadow the policy still runs, it only decides nothing
        context = _context(config, domains, block_size, caps_C, num_blocks, target_K)
        self.target_K, self.num_blocks = context.target_K, num_blocks
        self.policy = make_policy(acting, context)
        self.laws: Laws | None = None  # in force from the next row on
        num_datasets = len(domains.prefixes_C)
        self._at = PlanPoint.new(self.policy.initial_state(), np.zeros(num_datasets, dtype=np.int64))
        self._begins: list[PlanPoint] = []  # where the kept calls of `plan` began
        self._weights: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # block → weights in force, the policy's own
        self._notes: list[str] = []  # what the policy had to say, not yet taken

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
        if self.config.value("policy") not in WITHOUT_LAWS:
            kernels()  # loaded now, in the first call, not when the first laws are in force and the training waits
        self._at = dataclasses.replace(self._at, laws=self.laws)
        self._begins.append(self._at)
        rows_SxC, self._at = self._lay_out(self._at, num_rows, self._remember)
        return rows_SxC

    # ---------------------------------------------------------------- planning in another process

    @property
    def next_block(self) -> int:
        """The block of the next row."""
        return self._at.block

    def hand_over(self) -> dict[str, np.ndarray]:
        """All that decides the rows from here on, for `take_over` in another process."""
        arrays = self._at.to_arrays()
        if self.laws is not None:
            arrays |= nest("in_force.", self.laws.to_arrays())
        return arrays

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
        return arrays | nest("end.", self._at.to_arrays())

    def adopt(self, arrays: dict[str, np.ndarray], num_rows: int) -> np.ndarray | None:
        """The next rows as another process has planned them under the present laws, as if `plan` had been called here;
        None, and nothing has changed, where they are not `num_rows` rows from here on that can be right."""
        end = PlanPoint.from_arrays(unnest("end.", arrays), self.config.given_transfer)
        rows_SxC, weights_Sx2xK = arrays["rows_SxC"], arrays["weights_Sx2xK"]
        laid_out_C = self._at.laid_out_C + rows_SxC.sum(axis=0, dtype=np.int64)
        caps_C = laid_out_C if self.caps_C is None else self.caps_C
        if not (
            rows_SxC.shape == (num_rows, len(self.domains.prefixes_C)) and len(weights_Sx2xK) == num_rows
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

    def _remember(self, state: PolicyState, before: PolicyState, blocks: int) -> None:
        """Keep the weights of `blocks` blocks from that of `state` on, and what the policy has to say of them."""
        if state.note not in ("", before.note):
            self._notes.append(f"from block {state.step} on, {state.note}")
        pair = (self._in_force_K(state), state.weights_K)
        self._weights.update(dict.fromkeys(range(state.step, state.step + blocks), pair))

    def _lay_out(self, at: PlanPoint, num_rows: int, remember: _Remember | None = None) -> tuple[np.ndarray, PlanPoint]:
        """The next rows from a point on, counts_SxC, and the point after them. Changes nothing but what `remember`
        does: it is told of every stretch of rows with the same weights."""
        state, last_K, laws = at.state, at.last_K, at.laws
        rows = Rows(self.domains, self.block_size, self.caps_C, at, num_rows)
        if self.config.shadow:  # the policy decides nothing: all rows are known before its first step
            rows.lay_out(num_rows, self.domains.prior_K)
        row, own = 0, at.block == 0
        while row < num_rows:
            before = state
            if last_K[0] >= 0:
                state, own = self.policy.step(state, laws, last_K), True
            # A state that was not made by this policy may have weights of its own, for one block.
            blocks = self.policy.constant_until(state, laws, state.step + num_rows - row) - state.step if own else 1
            blocks = min(blocks, max(1, _CELLS // len(rows.laid_out_C)))
            if not self.config.shadow:
                rows.lay_out(blocks, state.weights_K)
            if remember is not None:
                remember(state, before, blocks)
            counts_SxK = rows.by_domain(row, row + blocks)
            state, last_K = self._held(state, laws, counts_SxK[:-1]), counts_SxK[-1]
            row += blocks
        end = PlanPoint(at.block + num_rows, state, last_K, rows.credit_C, rows.laid_out_C, laws)
        return rows.counts_SxC, end

    def _held(self, state: PolicyState, laws: Laws | None, counts_SxK: np.ndarray) -> PolicyState:
        """The policy's steps over rows that leave its weights as they are."""
        if len(counts_SxK) > 1 and hasattr(self.policy, "step_constant"):
            return self.policy.step_constant(state, laws, counts_SxK)
        for counts_K in counts_SxK:
            state = self.policy.step(state, laws, counts_K)
        return state

    def _settled(self, at: PlanPoint) -> PlanPoint:
        """The same point after the policy's step over the row before it."""
        if at.last_K[0] < 0:
            return at
        state = self.policy.step(at.state, at.laws, at.last_K)
        return dataclasses.replace(at, state=state, last_K=np.full_like(at.last_K, -1))

    def _in_force_K(self, state: PolicyState) -> np.ndarray:
        return self.domains.prior_K if self.config.shadow else state.weights_K

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

    def to_arrays(self, block: int) -> dict[str, np.ndarray]:
        """All state, for a sidecar from which rows before `block` are never laid out again."""
        block = min(block, self._at.block)
        points = [self._point(block), *(p for p in self._begins if p.block > block), self._at]
        blocks_S = np.array(sorted(self._weights), dtype=np.int64)
        weights_Sx2xK = np.array([self._weights[b] for b in blocks_S])
        arrays = {"points": np.int64(len(points)), "blocks_S": blocks_S, "weights_Sx2xK": weights_Sx2xK}
        for n, point in enumerate(points):
            arrays |= nest(f"point{n}.", point.to_arrays())
        if self.laws is not None:
            arrays |= nest("laws.", self.laws.to_arrays())
        return arrays

    def restore(self, saved: Saved) -> None:
        """Go on from a sidecar, with what it means to this run."""
        plan = saved.plan(self.policy, self.config.given_transfer)
        self._begins, self._at, self.laws, self._weights = plan.begins, plan.at, plan.laws, plan.weights

    def begin_at(self, block: int, start_C: np.ndarray) -> None:
        """Plan from `block` on, after start_C samples of each dataset that others laid out; laws and policy are as they
        are (those of a sidecar, or the first)."""
        state = dataclasses.replace(self.state, step=block, samples_K=self.domains.by_domain(start_C))
        self._at = PlanPoint.new(at_block(self.policy, state), start_C, self.laws)


def _context(
    config: AdoConfig, domains: Domains, block_size: int, caps_C: np.ndarray | None, num_blocks: int | None,
    target_K: np.ndarray | None,
) -> PolicyContext:  # fmt: skip
    """What the policy may know of this run. target_K: None takes what the option says."""
    size_K = np.bincount(domains.domain_of_C, domains.lengths_C.astype(np.float64), minlength=len(domains.names_K))
    cap_K = None
    if caps_C is not None:
        capped_K = with_share(domains.domain_of_C, domains.share_C, caps_C)
        cap_K = np.where(capped_K >= UNLIMITED, np.inf, capped_K)
    if target_K is None:
        target_K = resolve_target(config.target, domains.names_K, domains.prior_K, size_K / size_K.sum())
    return PolicyContext(
        domains.prior_K, natural_K=size_K / size_K.sum(), names_K=domains.names_K, block_size=block_size,
        target_K=target_K, num_blocks=num_blocks, cap_K=cap_K, seed=config.seed,
        length_K=with_share(domains.domain_of_C, domains.share_C, domains.lengths_C),
    )  # fmt: skip


