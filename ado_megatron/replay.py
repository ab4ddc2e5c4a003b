"""`ado-megatron replay`: what ADO would have done on a recorded run, without a GPU.

Legend: K domains, T steps, R refits, 3 = (log β, log ε, α).

The losses are those of the recorded run: they were measured under the weights that this run had, so a replay shows
which weights the policy answers with, not what training on them would have given.
"""

import argparse
import sys
from dataclasses import dataclass

import numpy as np

from ado_megatron.config import AdoConfig
from ado_megatron.history import LossHistory, fit_history
from ado_megatron.policy import make_policy
from ado_megatron.scaling_law import Laws
from ado_megatron.trace import Trace, read_trace


@dataclass(frozen=True)
class Replay:
    """Weights after every step, and the laws of every refit."""

    weights_TxK: np.ndarray  # row t: the weights in force after step t
    law_steps_R: np.ndarray
    laws_RxKx3: np.ndarray
    objective_RxK: np.ndarray
    fits_R: list[Laws]


def replay(trace: Trace, config: AdoConfig) -> Replay:
    """Runs history, fits and policy of `config` over a trace, synchronously. Laws in the trace are used, not fitted."""
    config = config.resolved()
    policy = make_policy(config, trace.prior_K, trace.names_K)
    history = LossHistory(trace.prior_K.size, config)
    given = dict(zip(trace.law_steps_R.tolist(), trace.laws_RxKx3, strict=True)) if trace.law_steps_R is not None else None
    state, laws = policy.initial_state(), None
    weights_TxK, steps, fits = np.zeros(trace.loss_TxK.shape), [], []
    samples_K = np.zeros(trace.prior_K.size, np.int64)
    for t, (counts_K, loss_K) in enumerate(zip(trace.counts_TxK, trace.loss_TxK, strict=True)):
        samples_K = samples_K + counts_K
        tokens_K = np.where(np.isnan(loss_K), 0.0, np.maximum(counts_K, 0))
        history.append(t, samples_K, counts_K, np.where(tokens_K > 0, loss_K, 0.0) * tokens_K, tokens_K)
        fit = None
        if given is not None:
            fit = Laws.given(given[t]) if t in given else None
        elif config.refit_at(t):
            fit = fit_history(history.cut(t + 1), config)
        if fit is not None:
            laws = fit.merged(laws)
            steps.append(t)
            fits.append(fit)
        state = policy.step(state, laws, counts_K)
        weights_TxK[t] = state.weights_K
    num = trace.prior_K.size
    return Replay(weights_TxK, np.array(steps, np.int64), np.array([f.params() for f in fits]).reshape(-1, num, 3),
                  np.array([f.objective_K for f in fits]).reshape(-1, num), fits)


def main(argv=None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="ado-megatron replay", description=__doc__)
    parser.add_argument("trace")
    parser.add_argument("--profile", default="ado")
    parser.add_argument("--out")
    parser.add_argument("--start-step", type=int)
    parser.add_argument("--refit-interval", type=int)
    parser.add_argument("--ignore-steps", type=int)
    parser.add_argument("--own-n", action=argparse.BooleanOptionalAction)
    args = parser.parse_args(argv)
    trace = read_trace(args.trace)
    values = {"profile": args.profile} | trace.options
    for name in ("start_step", "refit_interval", "ignore_steps", "own_n"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    result = replay(trace, AdoConfig(**values))
    if args.out:
        np.savez(args.out, weights_TxK=result.weights_TxK, law_steps_R=result.law_steps_R,
                 laws_RxKx3=result.laws_RxKx3, objective_RxK=result.objective_RxK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
