"""What the page draws: curves of all arms on one axis of steps, thinned until they fit in a page.

Legend: K domains, S logging intervals, E points of time (ends of merged intervals), F refits, D series (the domains
shown, then the groups), R runs of an arm, 3 = (log β, log ε, α).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ado_megatron.report.arms import Arm, by_seed, difference, over_runs
from ado_megatron.report.data import Fit, Run, thin
from ado_megatron.report.groups import groups_of
from ado_megatron.scaling_law.laws import Laws

MOST_DOMAINS = 1000  # with a series of their own; the others are in their groups
MOST_POINTS = 600
GAP_POINTS = 40  # few, so that each is a mean over enough tokens
FEWEST_POINTS, FEWEST_REFITS = 20, 8
OVER_TIME, AT_REFITS = 450_000, 250_000  # numbers on a page: with plotly.js and the table it stays under 5 MB


@dataclass(frozen=True)
class Curve:
    """D lines over E steps; an interval of each point reaches from value − below to value + above.

    below None: there is none. above None: as far as below.
    """

    step_E: np.ndarray
    value_ExD: np.ndarray
    below_ExD: np.ndarray | None = None
    above_ExD: np.ndarray | None = None


@dataclass(frozen=True)
class Columns:
    """Which series there are: shown domains, largest prior first, then groups (name → domains)."""

    shown_D: np.ndarray
    groups: dict[str, list[int]]

    @classmethod
    def of(cls, arms: Sequence[Arm]) -> Columns:
        """The largest domains: MOST_DOMAINS, fewer where so many arms would leave no room for their curves."""
        run = arms[0].runs[0]
        order_K = np.argsort(-run.prior_K, kind="stable")
        groups = groups_of(run.names_K, run.prior_K)
        return cls(order_K[: min(MOST_DOMAINS, OVER_TIME // (FEWEST_POINTS * _width(arms)))], groups)

    @property
    def num(self) -> int:
        """D."""
        return len(self.shown_D) + len(self.groups)

    def sums(self, values_xK: np.ndarray) -> np.ndarray:
        """Each domain, and each group's sum; … x K to … x D."""
        whole = [values_xK[..., members].sum(-1, keepdims=True) for members in self.groups.values()]
        return np.concatenate([values_xK[..., self.shown_D], *whole], axis=-1)

    def domains(self, values_xK: np.ndarray) -> np.ndarray:
        """Each domain; nan for groups, which have no law of their own."""
        none = np.full((*values_xK.shape[:-1], len(self.groups)), np.nan)
        return np.concatenate([values_xK[..., self.shown_D], none], axis=-1)


def _width(arms: Sequence[Arm]) -> int:
    """Numbers of one series at one point of time: weight, loss, law, epochs, and the difference to the first arm."""
    return sum((8 if len(arm.runs) > 1 else 4) + 2 * (arm is not arms[0]) for arm in arms)


def points(arms: Sequence[Arm], columns: Columns) -> tuple[int, int]:
    """(most points of a curve over time, most refits) that the page has room for."""
    over_time = OVER_TIME // (columns.num * _width(arms))
    refits = AT_REFITS // (columns.num * 10 * len(arms))  # α, speed, s, credit, validation, with their intervals
    return int(np.clip(over_time, FEWEST_POINTS, MOST_POINTS)), int(np.clip(refits, FEWEST_REFITS, MOST_POINTS))


def common_steps(arms: Sequence[Arm], most: int) -> np.ndarray:
    """Ends of the intervals into which all runs are merged: those of the longest run, thinned."""
    longest = max((run for arm in arms for run in arm.runs), key=lambda run: (run.step_S[-1], -len(run.step_S)))
    return longest.step_S[thin(len(longest.step_S), most)]


def curves(arms: Sequence[Arm], columns: Columns) -> list[dict[str, Curve]]:
    """The curves of each arm by name; a name that an arm has no data for is not there."""
    most, most_refits = points(arms, columns)
    step_E = common_steps(arms, most)
    merged = [[_merged(run, step_E) for run in arm.runs] for arm in arms]
    found: list[dict[str, Curve]] = []
    for arm, runs in zip(arms, merged, strict=True):
        made = _over_time(runs, columns) | _at_refits(arm.runs, columns, most_refits) | _of_all(arm.runs)
        made["validation"] = _validation(arm.runs, columns, most_refits)
        if arm is not arms[0]:
            made["gap"] = _gap(arms[0], arm, columns, common_steps(arms, min(most, GAP_POINTS)))
        found.append({name: curve for name, curve in made.items() if np.isfinite(curve.value_ExD).any()})
    return found


def _merged(run: Run, step_E: np.ndarray) -> Run:
    """Merged at those of the steps that the run has reached; at its own last one if it has reached none."""
    step_E = step_E[step_E <= run.step_S[-1]]
    return run.merged(step_E if len(step_E) else run.step_S[-1:])


def _summary(step_E: np.ndarray, values_R: list[np.ndarray]) -> Curve:
    """The mean over runs, with its interval where there are several. A run may be longer than another."""
    values = np.array([values_ExD[: len(step_E)] for values_ExD in values_R])
    if len(values) == 1:
        return Curve(step_E, values[0])
    found = over_runs(values)
    return Curve(step_E, found.mean, found.half)


def _over_time(runs: list[Run], columns: Columns) -> dict[str, Curve]:
    step_E = min((run.step_S for run in runs), key=len)

    def law(run: Run) -> np.ndarray:
        loss_ExK = run.laws().loss(run.law_n_SxK)
        return columns.domains(np.where((run.step_S > run.config.ignore_steps)[:, None], loss_ExK, np.nan))

    what: dict[str, Callable[[Run], np.ndarray]] = {
        "weight": lambda run: columns.sums(run.weights_SxK),
        "loss": lambda run: _loss(run, columns),
        "law": law,
        "epochs": lambda run: _ratio(columns.sums(run.drawn_SxK), columns.sums(run.supply.length_K[None])),
    }
    return {name: _summary(step_E, [value(run) for run in runs]) for name, value in what.items()}


def _validation(runs: list[Run], columns: Columns, most: int) -> Curve:
    validated = [run.validation_step_V for run in runs]
    step_V = _in_all(validated)
    step_V = step_V[thin(len(step_V), most)]
    rows = [run.validation_VxK[_places(at, step_V)] for run, at in zip(runs, validated, strict=True)]
    return _summary(step_V, [columns.domains(row_VxK) for row_VxK in rows])


def _loss(run: Run, columns: Columns) -> np.ndarray:
    """Means over the tokens, of a group over those of all its domains."""
    tokens_ExK = np.where(np.isfinite(run.loss_SxK), run.tokens_SxK, 0.0)
    loss_ExD = _ratio(columns.sums(np.nan_to_num(run.loss_SxK) * tokens_ExK), columns.sums(tokens_ExK))
    shown = len(columns.shown_D)
    return np.concatenate([run.loss_SxK[:, columns.shown_D], loss_ExD[:, shown:]], axis=1)


def _at_refits(runs: list[Run], columns: Columns, most: int) -> dict[str, Curve]:
    """What the laws of each refit say. Domains whose law was not accepted have no value."""
    fits_R = [[fit for fit in run.fits if fit.failed is None] for run in runs]
    step_F = _in_all([np.array([fit.step for fit in fits], dtype=int) for fits in fits_R])
    step_F = step_F[thin(len(step_F), most)]
    rows: dict[str, list[np.ndarray]] = {"alpha": [], "speed": [], "transfer": [], "credit": []}
    for run, fits in zip(runs, fits_R, strict=True):
        by_step = {fit.step: fit for fit in fits}
        chosen = [by_step[step] for step in step_F.tolist()]
        rows["alpha"].append(_column(columns, chosen, [fit.law_Kx3[:, 2] for fit in chosen]))
        rows["speed"].append(_column(columns, chosen, [1000 * _speed_K(run, fit) for fit in chosen]))
        rows["transfer"].append(_column(columns, chosen, [_transfer_K(fit) for fit in chosen]))
        rows["credit"].append(_column(columns, None, [fit.credit_K for fit in chosen]))
    if runs[0].config.credit_exponent == 0.0:
        del rows["credit"]
    made = {name: _summary(step_F, values) for name, values in rows.items()}
    if len(runs) == 1:  # no seeds: what the fit itself says about its error
        alpha_FxD, transfer_FxD = made["alpha"].value_ExD, made["transfer"].value_ExD
        low, high = (_column(columns, chosen, [getattr(fit, name) for fit in chosen])
                     for name in ("transfer_low_K", "transfer_high_K"))  # fmt: skip
        made["alpha"] = Curve(step_F, alpha_FxD, _column(columns, chosen, [fit.stderr_Kx3[:, 2] for fit in chosen]))
        made["transfer"] = Curve(step_F, transfer_FxD, transfer_FxD - low, high - transfer_FxD)
    return made


def _column(columns: Columns, fits: list[Fit] | None, values_F: list[np.ndarray]) -> np.ndarray:
    """F x D of a value by domain; nan where the law of the fit was not accepted, if fits are given."""
    value_FxK = np.array(values_F).reshape(len(values_F), -1 if values_F else max(columns.shown_D) + 1)
    if fits:
        value_FxK = np.where([fit.ok_K for fit in fits], value_FxK, np.nan)
    return columns.domains(value_FxK)


def _transfer_K(fit: Fit) -> np.ndarray:
    """s where it was estimated or is a number above zero: nobody need see a line of zeros or of ∞."""
    return np.where(np.isfinite(fit.transfer_K) & (fit.transfer_K > 0), fit.transfer_K, np.nan)


def _speed_K(run: Run, fit: Fit) -> np.ndarray:
    at = min(int(np.searchsorted(run.step_S, fit.step)), len(run.step_S) - 1)
    laws = Laws.given(fit.law_Kx3, fit.transfer_K)
    own_K = run.counts_SxK[: at + 1].sum(0)
    return laws.speed(np.maximum(laws.effective_n(own_K), 1))


def _of_all(runs: list[Run]) -> dict[str, Curve]:
    """Curves of the whole run: one series."""
    names = {"total": "loss", "rate": "samples_per_second", "learning_rate": "lr", "grad_norm": "grad_norm"}
    step_E = _in_all([run.progress["step"] for run in runs])
    step_E = step_E[thin(len(step_E), MOST_POINTS)]
    made = {}
    for name, key in names.items():
        values = [run.progress[key][_places(run.progress["step"], step_E)][:, None] for run in runs]
        made[name] = _summary(step_E, values)
    return made


def _gap(first: Arm, arm: Arm, columns: Columns, step_E: np.ndarray) -> Curve:
    """Loss of the first arm minus that of another, over the steps that both have."""
    first_runs, runs = ([_merged(run, step_E) for run in one.runs] for one in (first, arm))
    step_E = min((run.step_S for run in (*first_runs, *runs)), key=len)
    ours, theirs = (np.array([_loss(run, columns)[: len(step_E)] for run in some]) for some in (first_runs, runs))
    order = by_seed(first, arm)
    found = difference(ours[order[0]], theirs[order[1]], True) if order else difference(ours, theirs, False)
    return Curve(step_E, found.mean, found.half if np.isfinite(found.half).any() else None)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


def _in_all(steps_R: Sequence[np.ndarray]) -> np.ndarray:
    """Steps that stand in every list, ascending."""
    common = np.unique(steps_R[0])
    for steps in steps_R[1:]:
        common = np.intersect1d(common, steps)
    return common


def _places(steps: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The last place of each wanted step among steps (a resumed run writes some twice)."""
    last = {int(step): place for place, step in enumerate(steps)}
    return np.array([last[int(step)] for step in wanted], dtype=int)
