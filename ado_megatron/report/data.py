"""What a run has written about itself, as arrays: metrics.jsonl read once, checked, and never written.

Legend: K domains, C columns, S logging intervals, R refits, V validations, P progress lines. A step is a count of steps
done. n counts samples, of the domain itself or of all domains, as the run's `own_n` says.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ado_megatron.blend.epoch_caps import with_share
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.measure.metrics import VERSION, Record, check_record, read_metrics


@dataclass(frozen=True)
class Fit:
    """One refit: laws of K domains and what is known about them. `failed`: why there are no laws, or None.

    3 = (log β, log ε, α)
    """

    step: int
    law_Kx3: np.ndarray
    ok_K: np.ndarray
    reason_K: list[str]
    rms_K: np.ndarray
    stderr_Kx3: np.ndarray
    speed_stderr_K: np.ndarray
    credit_K: np.ndarray
    seconds: float
    wait_seconds: float
    failed: str | None


@dataclass(frozen=True)
class Laws:
    """The laws in force: of each domain the last that was accepted, from the fit after `step_K` steps (0: none).

    `ok_K` and `reason_K` are the judgement of the last fit.
    """

    law_Kx3: np.ndarray
    stderr_Kx3: np.ndarray
    speed_stderr_K: np.ndarray
    step_K: np.ndarray
    ok_K: np.ndarray
    reason_K: list[str]


@dataclass(frozen=True)
class Supply:
    """What each domain has: samples of one epoch, drawn so far, the most that may be drawn (None: no caps at all).

    Prefixes without a share do not count. samples_left: of the whole run. block_size: samples of a step, under a batch
    ramp of the last ones.
    """

    length_K: np.ndarray
    drawn_K: np.ndarray
    cap_K: np.ndarray | None
    samples_left: int
    block_size: int


@dataclass(frozen=True)
class Run:
    """A run's metrics. Losses are means over an interval's tokens, nan where a domain had none."""

    path: Path
    names_K: list[str]
    prior_K: np.ndarray
    config: AdoConfig
    step_S: np.ndarray
    counts_SxK: np.ndarray
    tokens_SxK: np.ndarray
    loss_SxK: np.ndarray
    weights_SxK: np.ndarray
    supply: Supply
    fits: list[Fit]
    validation_step_V: np.ndarray
    validation_VxK: np.ndarray
    progress: dict[str, np.ndarray]  # step, loss, lr, grad_norm, samples_per_second; each of length P

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def n_SxK(self) -> np.ndarray:
        """The n of the laws at the end of each interval; at least 1, so that its logarithm exists."""
        own_SxK = np.cumsum(self.counts_SxK, axis=0)
        n_SxK = own_SxK if self.config.own_n else np.broadcast_to(own_SxK.sum(1, keepdims=True), own_SxK.shape)
        return np.maximum(n_SxK, 1)

    def laws(self) -> Laws:
        """The law of each domain that was accepted last; nan and step 0 where none was yet."""
        made = [fit for fit in self.fits if fit.failed is None]
        num = len(self.names_K)
        law_Kx3, stderr_Kx3 = np.full((num, 3), np.nan), np.full((num, 3), np.nan)
        speed_stderr_K, step_K = np.full(num, np.nan), np.zeros(num, dtype=int)
        for fit in made:
            ok_K = fit.ok_K
            law_Kx3[ok_K], stderr_Kx3[ok_K] = fit.law_Kx3[ok_K], fit.stderr_Kx3[ok_K]
            speed_stderr_K[ok_K], step_K[ok_K] = fit.speed_stderr_K[ok_K], fit.step
        reason_K = made[-1].reason_K if made else [""] * num
        ok_K = made[-1].ok_K if made else np.zeros(num, dtype=bool)
        return Laws(law_Kx3, stderr_Kx3, speed_stderr_K, step_K, ok_K, reason_K)

    def first_loss_K(self) -> np.ndarray:
        """The loss of the first interval that saw the domain."""
        seen_SxK = np.isfinite(self.loss_SxK)
        first_K = seen_SxK.argmax(0)
        return np.where(seen_SxK.any(0), self.loss_SxK[first_K, np.arange(len(self.names_K))], np.nan)

    def last_loss_K(self) -> np.ndarray:
        """The mean over the tokens of the last twentieth of the intervals, or the last loss that was seen before it."""
        tail = max(1, len(self.step_S) // 20)
        mean_K = token_mean(self.loss_SxK[-tail:], self.tokens_SxK[-tail:])
        seen_SxK = np.isfinite(self.loss_SxK)
        last_K = len(self.step_S) - 1 - seen_SxK[::-1].argmax(0)
        newest_K = np.where(seen_SxK.any(0), self.loss_SxK[last_K, np.arange(len(self.names_K))], np.nan)
        return np.where(np.isfinite(mean_K), mean_K, newest_K)

    def thinned(self, most: int) -> Run:
        """The same run in at most `most` intervals, neighbours merged: sums summed, losses averaged over tokens."""
        intervals = len(self.step_S)
        if intervals <= most:
            return self
        ends = np.unique(np.linspace(0, intervals, most + 1).astype(int))
        starts, last = ends[:-1], ends[1:] - 1
        loss_sum = np.where(np.isfinite(self.loss_SxK), self.loss_SxK, 0.0) * self.tokens_SxK
        tokens = np.add.reduceat(self.tokens_SxK, starts)
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = np.add.reduceat(loss_sum, starts) / tokens
        return dataclasses.replace(
            self, step_S=self.step_S[last], counts_SxK=np.add.reduceat(self.counts_SxK, starts), tokens_SxK=tokens,
            loss_SxK=loss, weights_SxK=self.weights_SxK[last],
        )  # fmt: skip


def token_mean(loss_SxK: np.ndarray, tokens_SxK: np.ndarray) -> np.ndarray:
    """Mean over intervals with the token counts as weights: loss_K, nan where there were none."""
    seen_SxK = np.isfinite(loss_SxK) & (tokens_SxK > 0)
    tokens_K = np.where(seen_SxK, tokens_SxK, 0.0).sum(0)
    sum_K = np.where(seen_SxK, loss_SxK * tokens_SxK, 0.0).sum(0)
    return np.divide(sum_K, tokens_K, out=np.full(len(tokens_K), np.nan), where=tokens_K > 0)


def read_run(path: str | Path) -> Run:
    """The run in a run directory. UserError when there is no readable metrics.jsonl with at least one interval."""
    run_dir = Path(path).expanduser()
    file = run_dir / "ado" / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"{run_dir} is no run directory with measurements: there is no {file}")
    records = read_metrics(file)
    if not records or records[0].get("type") != "run":
        raise UserError(f"{file} does not begin with the line that describes its run")
    header = records[0]
    if header.get("version") != VERSION:
        raise UserError(f"{file} is of version {header.get('version')}; this report reads version {VERSION}")
    steps = [r for r in records if r["type"] == "step"]
    if not steps:
        raise UserError(f"{file} has no measured interval yet; wait for --ado-log-interval steps")
    for record in records:
        check_record(record, file, header)
    try:
        return _run(run_dir.resolve(), header, steps, records)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError, MemoryError) as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file} lacks something a report needs ({what}); it is damaged, or no file of ours") from error


def _run(path: Path, header: Record, steps: list[Record], records: list[Record]) -> Run:
    num = len(header["domains"])
    validations = [r for r in records if r["type"] == "validation"]
    progress = [r for r in records if r["type"] == "progress"]
    keys = ("step", "loss", "lr", "grad_norm", "samples_per_second")
    return Run(
        path=path,
        names_K=[str(name) for name in header["domains"]],
        prior_K=_floats(header["prior_K"]),
        config=AdoConfig.from_dict(header["config"]).resolved(),
        step_S=np.array([r["step"] for r in steps]),
        counts_SxK=np.array([r["counts_K"] for r in steps], dtype=np.int64).reshape(-1, num),
        tokens_SxK=_floats([r["tokens_K"] for r in steps]).reshape(-1, num),
        loss_SxK=_floats([r["loss_K"] for r in steps]).reshape(-1, num),
        weights_SxK=_floats([r["weights_K"] for r in steps]).reshape(-1, num),
        supply=_supply(header, steps[-1]),
        fits=[_fit(r, num) for r in records if r["type"] == "fit"],
        validation_step_V=np.array([r["step"] for r in validations], dtype=int),
        validation_VxK=_floats([r["loss_K"] for r in validations]).reshape(-1, num),
        progress={key: _floats([r.get(key) for r in progress]) for key in keys},
    )


def _floats(values) -> np.ndarray:
    """JSON's null is nan."""
    return np.array(values, dtype=np.float64)


def _supply(header: dict, last: dict) -> Supply:
    if min(header["domain_of_C"], default=-1) < 0 or max(header["domain_of_C"]) >= len(header["domains"]):
        raise ValueError("domain_of_C names domains that are not there")
    domain_of_C, lengths_C = np.array(header["domain_of_C"], dtype=int), _floats(header["lengths_C"])
    share_C, caps_C = _floats(header.get("share_C", lengths_C)), header.get("caps_C")
    return Supply(
        length_K=with_share(domain_of_C, share_C, lengths_C),
        drawn_K=with_share(domain_of_C, share_C, np.rint(lengths_C * _floats(last["epochs_C"]))),
        cap_K=None if caps_C is None else with_share(domain_of_C, share_C, _floats(caps_C)),
        samples_left=max(header["num_blocks"] * header["block_size"] - last["consumed_samples"], 0),
        block_size=header["block_size"],
    )


def _fit(record: dict, num: int) -> Fit:
    def row(name: str, shape=(num,)) -> np.ndarray:
        values = record.get(name)
        return np.full(shape, np.nan) if values is None else _floats(values).reshape(shape)

    return Fit(
        step=record["step"],
        law_Kx3=np.stack([row("log_beta_K"), row("log_epsilon_K"), row("alpha_K")], axis=1),
        ok_K=row("ok_K") == 1.0,
        reason_K=[str(reason or "") for reason in record.get("reason_K") or [""] * num],
        rms_K=row("rms_K"),
        stderr_Kx3=row("stderr_Kx3", (num, 3)),
        speed_stderr_K=row("speed_stderr_K"),
        credit_K=row("credit_K"),
        seconds=float(record.get("seconds") or 0.0),
        wait_seconds=float(record.get("wait_seconds") or 0.0),
        failed=record.get("failed"),
    )
