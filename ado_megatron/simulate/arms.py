"""Arms: policies side by side on one response, over paired seeds, as gains over the prior.

Legend: K domains, S blocks, R seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ado_megatron import profiles
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.policy.registry import WITHOUT_LAWS, policy_names
from ado_megatron.scaling_law.transfer_option import ESTIMATE
from ado_megatron.simulate.response import ResponseFile, best_static
from ado_megatron.simulate.simulation import Response, Simulation, simulate

DEFAULT = "released,paper,ado,plan,static"


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What all arms have in common."""

    file: ResponseFile
    prior_K: np.ndarray
    target_K: np.ndarray
    steps: int
    block_size: int
    noise: float

    @property
    def response(self) -> Response:
        """Of samples."""
        return self.file.of_samples(self.block_size)

    def loss(self, weights_K: np.ndarray, factor: float = 1.0) -> float:
        """Target loss, nats, of a fixed mixture after `factor` times the steps of the run."""
        loss_K = np.asarray(self.response(weights_K * (factor * self.steps * self.block_size)))
        weighed_K = self.target_K > 0
        return float(self.target_K[weighed_K] @ loss_K[weighed_K])

    def run(self, config: AdoConfig, seed: int) -> Simulation:
        """One simulated run."""
        return simulate(
            self.response, self.prior_K, target_K=self.target_K, config=config, steps=self.steps,
            block_size=self.block_size, noise=self.noise, seed=seed, names_K=self.file.names_K,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class ArmResult:
    """One arm over all seeds, in nats of target loss."""

    name: str
    gain_R: np.ndarray  # over the prior
    regret_R: np.ndarray  # behind the best fixed mixture; negative: ahead of it
    share_K: np.ndarray  # of all samples drawn, mean over the seeds
    first: Simulation  # that of the first seed


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """All arms, and what they are measured against."""

    setting: Setting
    prior_loss: float  # of the prior, fixed
    best_K: np.ndarray  # the best fixed mixture
    best_loss: float
    slope: float  # −dL/dlog N at the prior: nats for a factor e of compute
    arms: list[ArmResult]

    def compute_percent(self, gain: float) -> float:
        """Which part of the run's compute a gain is worth, by the slope at its end."""
        return 100.0 * gain / self.slope if self.slope > 0 else float("nan")


def arm_config(name: str, config: AdoConfig) -> AdoConfig:
    """The options of an arm: a profile under policy `ado`, or a policy by its name under the profile that is given.

    `plan` estimates the transfer unless the options say something else. Raises UserError for a name that is neither.
    """
    stages = config.stages if name == "stages" else None
    if name in profiles.NAMES:
        return dataclasses.replace(config, profile=name, policy="ado", stages=None)
    known = policy_names()
    if name not in known:
        all_names = ", ".join(dict.fromkeys([*profiles.NAMES, *known]))
        raise UserError(f"--arms: there is no arm {name!r}; the arms are {all_names}")
    transfer = config.transfer or (ESTIMATE if name == "plan" else None)
    return dataclasses.replace(config, policy=name, stages=stages, transfer=transfer)


def compare(
    setting: Setting, arms: Sequence[str], config: AdoConfig, seeds: int, say: Callable[[str], None] = lambda _: None
) -> Comparison:
    """Run every arm with seeds 0 … seeds − 1 (an arm without laws once: noise changes nothing in it).

    say: told what is being run.
    """
    configs = {name: arm_config(name, config) for name in arms}
    samples = setting.steps * setting.block_size
    prior_loss = setting.loss(setting.prior_K)
    best_K, best_loss = best_static(setting.response, setting.target_K, samples, setting.prior_K)
    step = 1e-4
    slope = (setting.loss(setting.prior_K, 1 - step) - setting.loss(setting.prior_K, 1 + step)) / (2 * step)
    results = []
    for name, arm in configs.items():
        runs = []
        for seed in range(1 if arm.value("policy") in (*WITHOUT_LAWS, "measure") else seeds):
            say(f"{name}, seed {seed}")
            runs.append(setting.run(arm, seed))
        loss_R = np.array([run.target_loss for run in runs])
        share_K = np.mean([run.counts_K for run in runs], 0) / samples
        results.append(ArmResult(name, prior_loss - loss_R, loss_R - best_loss, share_K, runs[0]))
    return Comparison(setting, prior_loss, best_K, best_loss, slope, results)
