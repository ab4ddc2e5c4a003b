"""`ado-megatron replay`: what ADO would have done on a recorded run, without a GPU.

Legend: K domains, T steps, R refits, 3 = (log β, log ε, α).

The losses are those of the recorded run: they were measured under the weights that this run had, so a replay shows
which weights the policy answers with, not what training on them would have given.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ado_megatron import profiles
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.option_fields import Parser
from ado_megatron.policy import PolicyContext, make_policy
from ado_megatron.replay.trace import Trace, read_trace
from ado_megatron.scaling_law.history import LossHistory
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.scaling_law.smoothing import fit_history
from ado_megatron.tables import text_table


@dataclass(frozen=True)
class Replay:
    """Weights after every step, and the laws of every refit."""

    initial_K: np.ndarray  # the weights in force at step 0
    weights_TxK: np.ndarray  # row t: the weights in force after step t
    law_steps_R: np.ndarray
    laws_RxKx3: np.ndarray
    objective_RxK: np.ndarray
    fits_R: list[Laws]
    own_n: bool  # which n the laws are in


def replay(trace: Trace, config: AdoConfig) -> Replay:
    """Runs history, fits and policy of `config` over a trace, synchronously. Laws in the trace are used, not fitted.

    Options that name no policy ask for the recursion of ADO under every profile: a replay decides nothing.
    """
    config = (config if config.policy is not None else dataclasses.replace(config, policy="ado")).resolved()
    block_size = max(int(trace.counts_TxK.sum() / max(len(trace.counts_TxK), 1)), 1)
    policy = make_policy(config, PolicyContext(trace.prior_K, names_K=tuple(trace.names_K), block_size=block_size,
                                               num_blocks=len(trace.counts_TxK), seed=config.seed))
    history = LossHistory(trace.prior_K.size, config)
    given = None
    if trace.law_steps_R is not None and trace.laws_RxKx3 is not None:
        given = dict(zip(trace.law_steps_R.tolist(), trace.laws_RxKx3, strict=True))
    state = policy.initial_state()
    laws: Laws | None = None
    weights_TxK, steps, fits = np.zeros(trace.loss_TxK.shape), [], []
    samples_K = np.zeros(trace.prior_K.size, np.int64)
    for t, (counts_K, loss_K) in enumerate(zip(trace.counts_TxK, trace.loss_TxK, strict=True)):
        samples_K = samples_K + counts_K
        tokens_K = np.where(np.isnan(loss_K), 0.0, np.maximum(counts_K, 0))
        history.append(t, samples_K, counts_K, np.where(tokens_K > 0, loss_K, 0.0) * tokens_K, tokens_K)
        fit = None
        if given is not None:
            fit = Laws.given(given[t], config.given_transfer) if t in given else None
        elif config.refit_at(t):
            fit = fit_history(history.snapshot(t + 1), config)
        if fit is not None:
            laws = fit.merged(laws)
            steps.append(t)
            fits.append(fit)
        state = policy.step(state, laws, counts_K)
        weights_TxK[t] = state.weights_K
    num = trace.prior_K.size
    laws_RxKx3 = np.array([f.params() for f in fits]).reshape(-1, num, 3)
    return Replay(policy.initial_state().weights_K, weights_TxK, np.array(steps, np.int64), laws_RxKx3,
                  np.array([f.objective_K for f in fits]).reshape(-1, num), fits, config.own_n)


def static_mixture(result: Replay) -> np.ndarray:
    """The time average of the weights that were in force at steps 0 … T−1."""
    return np.concatenate([result.initial_K[None], result.weights_TxK[:-1]]).mean(0)


def data_path(trace: Trace, weights_K: np.ndarray) -> str:
    """Weights as Megatron's --data-path takes them: "w1 prefix1 w2 prefix2 …"; names where no prefix is known."""
    names_K = trace.prefixes_K or trace.names_K
    return " ".join(f"{weight:.6f} {name}" for weight, name in zip(weights_K, names_K, strict=True))


def parse_variant(text: str, base: dict[str, Any]) -> tuple[str, AdoConfig]:
    """(label, config) of "PROFILE" or "PROFILE:option=value,option=value"; `base` are options for every variant.

    Raises UserError for an unknown profile or option, and for a value outside its range.
    """
    name, _, overrides = text.partition(":")
    values = base | {"profile": name}
    kinds = {spec.name: spec.metadata["kind"] for spec in dataclasses.fields(AdoConfig)}
    for item in filter(None, overrides.split(",")):
        option, _, value = item.partition("=")
        option = option.strip().replace("-", "_")
        if option not in kinds:
            raise UserError(f"--profile {text}: unknown option {option!r}; options are {', '.join(profiles.OPTIONS)}")
        values[option] = _parsed(kinds[option], value.strip(), text)
    return text, AdoConfig(**values)


def _parsed(kind: type, value: str, text: str) -> Any:
    if kind is bool:
        if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UserError(f"--profile {text}: {value!r} is neither true nor false")
        return value.lower() in ("true", "1", "yes")
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"--profile {text}: {value!r} is not a {kind.__name__}") from None


def _save(path: str, results: dict[str, Replay]) -> None:
    """The arrays of the contract for the first variant; with several, those of each under LABEL/ too."""
    arrays: dict[str, np.ndarray] = {}
    for label, result in results.items():
        for name in ("weights_TxK", "law_steps_R", "laws_RxKx3", "objective_RxK"):
            arrays.setdefault(name, getattr(result, name))
            if len(results) > 1:
                arrays[f"{label.replace('/', '_')}/{name}"] = getattr(result, name)
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes names for its own options


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ado-megatron replay", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", help=".npz trace, metrics.jsonl, or run directory")
    parser.add_argument("--profile", action="append", metavar="P[:option=value,…]",
                        help="a profile with option overrides; give it several times to compare [ado]")
    parser.add_argument("--out", help=".npz for weights and laws")
    parser.add_argument("--plot", help="image file: the weights of every variant side by side")
    parser.add_argument("--export-static", action="store_true",
                        help="print the time-averaged mixture as --data-path weights")
    for name in ("--start-step", "--refit-interval", "--ignore-steps"):
        parser.add_argument(name, type=int, help="for every variant")
    parser.add_argument("--own-n", action=argparse.BooleanOptionalAction, help="for every variant")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0; raises UserError for a bad trace or option."""
    args = _parser().parse_args(argv)
    trace = read_trace(args.trace)
    asked = {name: getattr(args, name) for name in ("start_step", "refit_interval", "ignore_steps", "own_n")}
    asked = {name: value for name, value in asked.items() if value is not None}
    results = {}
    for text in args.profile or ["ado"]:
        recorded = trace.options if text.partition(":")[0] == "released" else {}
        label, config = parse_variant(text, recorded | asked)
        results[label] = replay(trace, config)
    try:
        if args.out:
            _save(args.out, results)
        if args.plot:
            _draw(args.plot, trace, results)
    except OSError as error:
        path = error.filename or args.out or args.plot
        raise UserError(f"{path} cannot be written ({error.strerror}); give another path") from error
    for label, result in results.items():
        print(data_path(trace, static_mixture(result)) if args.export_static else summary(label, trace, result))
    return 0


def _draw(path: str, trace: Trace, results: dict[str, Replay]) -> None:
    try:
        from ado_megatron.replay.plot import draw  # matplotlib is slow to import and not needed otherwise
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install 'ado-megatron[report]'") from error
    try:
        draw(path, trace, results)
    except ValueError as error:
        raise UserError(f"--plot {path}: {error}") from error


def summary(label: str, trace: Trace, result: Replay) -> str:
    """What a variant did, in a line and a table."""
    last = result.fits_R[-1] if result.fits_R else None
    columns = [
        ("  domain", [f"  {name}" for name in trace.names_K]),
        ("prior", [f"{weight:.4f}" for weight in trace.prior_K]),
        ("last", [f"{weight:.4f}" for weight in result.weights_TxK[-1]]),
        ("last fit", ["no law"] * len(trace.names_K) if last is None else last.reason_K),
    ]
    head = f"{label}: {len(result.weights_TxK)} steps, {len(result.fits_R)} refits"
    return head + "\n" + text_table(columns, {"  domain", "last fit"})


if __name__ == "__main__":
    sys.exit(main())
