"""What a sidecar means to a run that is not quite the one that wrote it.

What an option may do is metadata of its field (option_fields.py, `resume`): a free one takes effect at once, others
change what the saved numbers mean and are refused, or accepted on demand, and the seed can never differ, because the
stream itself would be another one.

Legend: K domains, C datasets, S rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.errors import SidecarError
from ado_megatron.mixer.data_changes import OTHER, DataChanges, accepted, places
from ado_megatron.mixer.plan_point import PlanPoint
from ado_megatron.npz import nest, unnest
from ado_megatron.option_fields import flag_of, names
from ado_megatron.policy import Policy, PolicyState
from ado_megatron.profiles import PREFIX
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.stream.permutation import derive_key


def pack(
    meta: dict[str, Any], *, config: AdoConfig, domains: Domains, schedule: dict[str, Any], planner: dict,
    history: dict, alarms: dict, pending: list[tuple[int, int, dict | None]],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:  # fmt: skip
    """(meta, arrays) of a sidecar. meta: position and plan as integers. pending: (block, step, history that its fit
    was given or None) of the snapshots whose laws are not yet in force."""
    schedule_arrays = {name: value for name, value in schedule.items() if isinstance(value, np.ndarray)}
    meta = meta | {
        "domains": domains.fingerprint(), "config": config.to_dict(), "names_K": list(domains.names_K),
        "prefixes_C": list(domains.prefixes_C), "paths_C": places(domains.prefixes_C),
        "lengths_C": domains.lengths_C.tolist(),
        "content_C": None if domains.content_C is None else domains.content_C.tolist(),
        "schedule": {name: value for name, value in schedule.items() if name not in schedule_arrays},
        "cycles": [(block, step, fitted is not None) for block, step, fitted in pending],
    }  # fmt: skip
    arrays = {"base_id_C": domains.stream_id_C} | nest("schedule/", schedule_arrays)
    arrays |= nest("planner/", planner) | nest("history/", history) | nest("alarms/", alarms)
    for n, (_, _, fitted) in enumerate(pending):
        arrays |= nest(f"fit{n}/", fitted or {})
    return meta, arrays


@dataclasses.dataclass(frozen=True)
class SavedPlan:
    """What a planner goes on with. begins: where the calls of `plan` began whose rows are kept. at: the next row.
    weights: block → (weights in force, the policy's own) of the rows before it."""

    begins: list[PlanPoint]
    at: PlanPoint
    laws: Laws | None
    weights: dict[int, tuple[np.ndarray, np.ndarray]]


class Saved:
    """A sidecar's content, checked against the run that reads it.

    Raises SidecarError, naming the difference, for a sidecar of another run. `changes` names the differences that are
    accepted; when there is one, rows planned after the checkpoint are void (`keep_rows` False). `config` is that of the
    run that goes on.
    """

    def __init__(
        self, meta: dict[str, Any], arrays: dict[str, np.ndarray], path: Any, *, config: AdoConfig, domains: Domains,
        block_size: int,
    ):  # fmt: skip
        self.meta, self.arrays, self.domains, self.path = meta, arrays, domains, path
        for name, saved, given in (
            ("global batch", meta["block_size"], block_size), ("seed", meta["config"]["seed"], config.seed),
        ):  # fmt: skip
            if saved != given:
                raise SidecarError(
                    f"the sidecar {path} belongs to a run with {name} {saved}, this one has {given}; the order of the "
                    f"samples depends on it: resume with {name} {saved}, or start a new run"
                )
        self.config = _as_before(config, meta["config"]).resolved()
        theirs = _as_before(AdoConfig.from_dict(meta["config"]), meta["config"]).resolved().to_dict()
        ours = self.config.to_dict()
        differ = [name for name in ours if ours[name] != theirs[name] and name not in names(config, resume="silent")]
        may_change = names(config, resume="free")
        refused = [f"{flag_of(name, PREFIX)} {theirs[name]}" for name in differ if name not in may_change]
        # A state that was saved before the content of the data was known is compared without it.
        self.same_data = meta["domains"] in (domains.fingerprint(), domains.fingerprint(content=False))
        data = DataChanges(meta, arrays["base_id_C"], domains)
        self._old_C = data.old_C
        narrow = ""
        if data.kinds or not self.same_data:
            if data.kinds and OTHER not in data.kinds and not refused:
                narrow = f"; --ado-accept-data {','.join(data.kinds)} accepts this change of the data and no other"
            refused.append(f"the data {data.text}")
        words = accepted(config.accept_data)
        known = bool(narrow) and data.kinds.keys() <= words
        if refused and not (config.accept_changes or known):
            raise SidecarError(
                f"the sidecar {path} was written with {'; '.join(refused)}; resume with the same, or say "
                f"--ado-accept-changes to go on with what is given now{narrow}"
            )
        free = [f"{flag_of(name, PREFIX)} {theirs[name]}" for name in differ if name in may_change]
        self.changes = refused + free
        self.keep_rows = not differ and self.same_data  # a move alone changes no row

    @property
    def first_free_block(self) -> int:
        """The first block of which no sample was drawn before the checkpoint."""
        return -(-self.meta["consumed_samples"] // self.meta["block_size"])

    def old_dataset_C(self) -> np.ndarray:
        """For each dataset of this run, the saved one that it continues, or -1: a new one, or one of another length."""
        return self._old_C

    def old_domain_K(self) -> np.ndarray:
        """For each domain of this run, the saved domain that it continues (same name, all its datasets), or -1.
        Without groups a domain is its one dataset, and may have another name now."""
        old_C, names = self.old_dataset_C(), self.meta["names_K"]
        if self.meta["config"]["groups"] is None and (self.domains.domain_of_C == np.arange(len(old_C))).all():
            return old_C
        old_K = np.array([names.index(name) if name in names else -1 for name in self.domains.names_K])
        changed_K = np.bincount(self.domains.domain_of_C, old_C < 0, minlength=len(old_K)) > 0
        return np.where(changed_K, -1, old_K)

    def stream_id_C(self) -> np.ndarray:
        """What stands for each dataset in the order of samples: as saved; a new one for what is new, of an id that no
        other has or had (a dataset that was moved keeps its id, and its old name may come again)."""
        saved_C = self.arrays["schedule/stream_id_C"]
        taken = {int(stream) for stream in (*self.arrays["base_id_C"], *saved_C)}
        ids = []
        for base, length, old in zip(self.domains.stream_id_C, self.domains.lengths_C, self._old_C, strict=True):
            stream = int(base if old < 0 else saved_C[old])
            while old < 0 and stream in taken:
                stream = derive_key(stream, int(length)) >> 1
            taken.add(stream)
            ids.append(stream)
        return np.array(ids, dtype=np.int64)

    def schedule_state(self) -> dict[str, Any]:
        """The schedule's state for the datasets of this run, without the rows that are void.

        Datasets are matched by stream id, in any order; one that the state does not know starts at its first sample.
        Raises SidecarError inside a block of which a dataset is gone or, as the order of its samples follows that of
        the datasets, stands in another place.
        """
        state = unnest("schedule/", self.arrays) | self.meta["schedule"]
        if not self.keep_rows:
            partial = self.first_free_block - state["first_block"]
            state["counts_SxC"] = state["counts_SxC"][:partial]
        if self.same_data:
            return state
        old_of = {int(stream): c for c, stream in enumerate(state["stream_id_C"])}
        stream_id_C = self.stream_id_C()
        old_C = np.array([old_of.pop(int(stream), -1) for stream in stream_id_C])
        gone = state["counts_SxC"][:, sorted(old_of.values())].any()
        if gone or (len(state["counts_SxC"]) and (np.diff(old_C[old_C >= 0]) < 0).any()):
            raise SidecarError(
                f"datasets of the blend were {'removed' if gone else 'put in another order'}, but the checkpoint "
                "stands inside a block that has samples of them; resume from a checkpoint at the end of a block"
            )
        return state | {
            "stream_id_C": stream_id_C, "length_C": np.where(old_C >= 0, state["length_C"][old_C], 0),
            "counts_SxC": np.where(old_C >= 0, state["counts_SxC"][:, old_C], 0),
            "start_C": np.where(old_C >= 0, state["start_C"][old_C], 0), "digest": None,
        }  # fmt: skip

    def plan(self, policy_of: Callable[[int], Policy], transfer: float) -> SavedPlan:
        """Where the planner goes on: after the rows that were planned then or, where they are void, at the checkpoint.

        policy_of: this run's policy in a block. transfer: that of laws which were saved before laws had one.
        """
        arrays = unnest("planner/", self.arrays)
        points = [PlanPoint.from_arrays(unnest(f"point{n}.", arrays), transfer) for n in range(int(arrays["points"]))]
        policy = policy_of(points[0].block)
        if not self.same_data:
            point = self._remapped(points[0], policy, transfer)
            return SavedPlan([], point, point.laws, {})
        laws = unnest("laws.", arrays)
        begins, at = points[:-1], points[-1]
        if not self.keep_rows:
            begins, at = [], points[0]
            if at.block == 0:  # nothing was drawn: the policy begins as in a new run
                at = dataclasses.replace(at, state=policy.initial_state())
            elif at.last_K is None:  # no step of this policy makes the weights of the next row
                at = dataclasses.replace(at, state=at_block(policy, at.state))
        pairs = zip(arrays["blocks_S"], arrays["weights_Sx2xK"], strict=True)
        return SavedPlan(
            begins, at, Laws.from_arrays(laws, transfer) if laws else None,
            {int(b): (own_K, shadow_K) for b, (own_K, shadow_K) in pairs if b < at.block},
        )  # fmt: skip

    def _remapped(self, point: PlanPoint, policy: Policy, transfer: float) -> PlanPoint:
        """A saved point for other data: known datasets and laws keep what they had; the policy starts at the prior."""
        old_C, old_K = self.old_dataset_C(), self.old_domain_K()
        drawn_K = point.state.samples_K + (0 if point.last_K is None else point.last_K)  # with the row before
        samples_K = np.where(old_K >= 0, drawn_K[old_K], 0)
        state = dataclasses.replace(policy.initial_state(), step=point.block, samples_K=samples_K)
        laws = point.laws
        if laws is not None:
            params_Kx3 = np.where((old_K >= 0)[:, None], laws.params()[old_K], np.nan)
            laws = Laws.given(params_Kx3, np.where(old_K >= 0, laws.transfer_K[old_K], transfer))
        held_K = point.held_K
        if held_K is not None:
            held_K = np.where(old_K >= 0, held_K[old_K], 0.0)
            held_K = held_K / held_K.sum() if held_K.any() else None
        laid_out_C = np.where(old_C >= 0, point.laid_out_C[old_C], 0)
        return dataclasses.replace(PlanPoint.new(at_block(policy, state), laid_out_C, laws), held_K=held_K)

    def refits(self, snapshot_after: Callable[[int], int]) -> tuple[int, list[tuple[int, int, dict | None]]]:
        """(next snapshot, pending refits with the histories of their fits); no refit where its rows are void."""
        if not self.keep_rows:
            return snapshot_after(self.first_free_block - 1), []
        pending = [
            (block, step, unnest(f"fit{n}/", self.arrays) if has_fit else None)
            for n, (block, step, has_fit) in enumerate(self.meta["cycles"])
        ]
        return self.meta["next_cut"], pending

    def history(self) -> dict[str, np.ndarray]:
        """The arrays of the loss history, for the domains of this run."""
        arrays = unnest("history/", self.arrays)
        if self.same_data:
            return arrays
        old_K = self.old_domain_K()
        for name, value in arrays.items():
            if value.ndim == 2:
                arrays[name] = np.where(old_K >= 0, value[:, old_K], 0.0)
        return arrays | {"num_domains": np.array(len(old_K))}


def at_block(policy: Policy, state: PolicyState) -> PolicyState:
    """A state whose weights are those of its block, if the policy knows them from the block alone."""
    return policy.at_block(state) if hasattr(policy, "at_block") else state


def _as_before(config: AdoConfig, saved: dict[str, Any]) -> AdoConfig:
    """The config with every option that the saved run did not know yet, and that is not given now, as it was then."""
    new = {
        spec.name: spec.metadata["before"] for spec in dataclasses.fields(config)
        if spec.name not in saved and getattr(config, spec.name) is None and spec.metadata["before"] is not None
    }  # fmt: skip
    return dataclasses.replace(config, **new)
