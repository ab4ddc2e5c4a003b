"""The stream and the rows of the planner, to the sample, as they were (tests/kit/before.py).

Legend: K domains, C datasets, S blocks, N samples.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import caps_from_config
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.planner import Planner
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.stream.blended_dataset import AdaptiveBlend
from ado_megatron.stream.schedule import Schedule, apportion, apportion_rows
from tests.kit.before import digest, stored, write_json

# -------------------------------------------------------------------- the stream

LENGTHS = (40_000, 9_001, 3_000, 1_237, 640, 97, 13)  # of 128,000 samples: all but the first are read twice or more
BLOCK, BLOCKS = 64, 2_000


def changing_weights() -> np.ndarray:
    """weights_SxC, from integers alone so that they are the same on every machine; datasets below a sample a block and
    datasets that drop out for a while are among them."""
    block_Sx1, dataset_C = np.arange(BLOCKS)[:, None], np.arange(len(LENGTHS))
    swing_SxC = 1 + block_Sx1 * (dataset_C + 2) // 5 % 11
    weights_SxC = np.array([4000, 2000, 1200, 600, 500, 60, 25]) * swing_SxC
    return np.where((dataset_C == 4) & (block_Sx1 // 100 % 4 == 1), 0, weights_SxC).astype(np.float64)


def tables() -> dict[str, np.ndarray]:
    """counts_SxC by kind: free, under caps (the last three datasets are one domain), many rows at once, and two hard
    ones."""
    weights_SxC, domain_of_C = changing_weights(), np.array([0, 1, 2, 3, 4, 4, 4])
    left_C = np.array([1 << 40, 30_000, 8_000, 1 << 40, 2_000, 500, 200])
    free, capped, credit_C, capped_credit_C = [], [], np.zeros(len(LENGTHS)), np.zeros(len(LENGTHS))
    for weights_C in weights_SxC:
        counts_C, credit_C = apportion(weights_C, BLOCK, credit_C)
        free.append(counts_C)
        counts_C, capped_credit_C = apportion(weights_C, BLOCK, capped_credit_C, left_C, domain_of_C)
        left_C = left_C - counts_C
        capped.append(counts_C)
    steady = [apportion_rows(weights_SxC[b], BLOCK, 100, np.zeros(len(LENGTHS)))[0] for b in range(0, BLOCKS, 200)]
    return {
        "free": np.array(free), "capped": np.array(capped), "steady": np.concatenate(steady),
        "sparse": sparse_table(), "folded": folded_table(),
    }  # fmt: skip


def sparse_table() -> np.ndarray:
    """Most datasets get less than a sample a block, so who comes first is decided by deadlines."""
    dataset_C, rows, credit_C = np.arange(60), [], np.zeros(60)
    for b in range(500):
        weights_C = (1 + (dataset_C * 7919 + b // 9 * 104_729) % 97) ** 3
        counts_C, credit_C = apportion(weights_C, 24, credit_C)
        rows.append(counts_C)
    return np.array(rows)


def folded_table() -> np.ndarray:
    """An opponent who gives all weight to the datasets that are owed most, until quotas have to be folded."""
    rows, credit_C = [], np.zeros(40)
    for b in range(500):
        owed_C = np.argsort(credit_C, kind="stable")[-max(1, 40 // (1 + b % 8)) :]
        weights_C = np.full(40, 1e-9)
        weights_C[owed_C] = 1 + owed_C * (b + 3) % 11
        counts_C, credit_C = apportion(weights_C, 8, credit_C)
        rows.append(counts_C)
    return np.array(rows)


class Numbers:
    """A dataset of numbers."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, sample: int) -> dict:
        return {"number": sample}


def streams() -> dict:
    """Digests of tables, of the (dataset, sample) that they give, and of what a blend's items say."""
    rows = tables()
    values = {f"counts {name}": digest(table) for name, table in rows.items()}
    runs = {"shuffled": {}, "in order": {"in_order": True, "stream_id_C": [90 + 7 * c for c in range(len(LENGTHS))]}}
    for name, options in runs.items():
        schedule = Schedule(LENGTHS, BLOCK, BLOCKS, 1234, **options)
        for first in range(0, BLOCKS, 250):
            schedule.publish(first, rows["free"][first : first + 250])
        blocks = [schedule.block(b) for b in range(BLOCKS)]
        dataset_N, _, sample_N = (np.concatenate(part) for part in zip(*blocks, strict=True))
        values[f"stream {name}"] = digest(dataset_N, sample_N)
        values[f"agreement {name}"] = schedule.digest
        blend = AdaptiveBlend([Numbers(length) for length in LENGTHS], schedule)
        items = [blend[i] for i in [*range(500), *range(7, len(blend), 1013)]]
        keys = ("dataset_id", "ado_key", "ado_sample", "number")
        values[f"items {name}"] = digest([[int(item[key]) for key in keys] for item in items])
    epochs_C = rows["free"].sum(0) / np.array(LENGTHS)
    return values | {"datasets read twice or more": int((epochs_C >= 2).sum())}


def test_the_stream_is_as_it_was():
    values = stored("stream.json")
    assert values["datasets read twice or more"] == 6
    assert streams() == values


# -------------------------------------------------------------------- the planner

GROUPS = {"text": ["web_*", "books_*"], "code": "code", "sums": ["maths_*", "tables_*"]}


def plan(directory: Path, profile: str, case: str) -> tuple[np.ndarray, np.ndarray]:
    """300 rows and the weights after them, under laws that change every 60 rows; the first 60 have none."""
    # The bound on changes, and a policy of the profile, came later.
    options: dict = {"profile": profile, "policy": "ado", "start_step": 20, "max_change": 1.0}
    if case == "capped":
        options["max_epochs"] = "3,code=1.5,tables=0.5"
    elif case == "grouped":
        (directory / "groups.json").write_text(json.dumps(GROUPS))
        options |= {"groups": str(directory / "groups.json"), "max_epochs": "4,sums=1"}
    elif case == "shadow":
        options |= {"shadow": True, "prior": "temperature", "temperature": 2.0}
    config = AdoConfig(**options)
    prefixes = [f"data/{name}_text_document" for name in ("web", "code", "books", "maths", "tables")]
    domains = Domains.build(prefixes, [8, 5, 3, 1, 0.5], [6000, 2500, 900, 250, 60], config)
    planner = Planner(config.resolved(), domains, 32, caps_from_config(config, domains))
    rows, domain_K = [planner.plan(60)], np.arange(len(domains.names_K))
    for fit in range(4):
        log_beta_K = 1.0 + 0.25 * ((3 * domain_K + fit) % 5)
        log_epsilon_K = 0.1 + 0.2 * ((domain_K + 2 * fit) % 4)
        alpha_K = 0.1 + 0.1 * ((2 * domain_K + fit) % 5)
        laws_Kx3 = np.stack([log_beta_K, log_epsilon_K, alpha_K], -1)
        if fit == 2:
            laws_Kx3[1] = np.nan  # a domain without a law
        planner.laws = Laws.given(laws_Kx3, 0.0 if config.resolved().own_n else np.inf)
        rows.append(planner.plan(60))
    return np.concatenate(rows), planner.state.weights_K


def plans() -> dict:
    cases = [(profile, case) for profile in ("ado", "released", "paper") for case in ("plain", "capped", "grouped")]
    values = {}
    with tempfile.TemporaryDirectory() as directory:
        for profile, case in [*cases, ("ado", "shadow")]:
            rows_SxC, weights_K = plan(Path(directory), profile, case)
            values[f"{profile} {case}"] = {"rows": digest(rows_SxC), "weights_K": weights_K.tolist()}
    return values


def test_the_planner_lays_out_the_same_rows():
    then, now = stored("plans.json"), plans()
    assert now.keys() == then.keys() and len({value["rows"] for value in then.values()}) == len(then)
    for name, value in then.items():
        np.testing.assert_allclose(now[name]["weights_K"], value["weights_K"], rtol=0, atol=1e-12, err_msg=name)
        assert now[name]["rows"] == value["rows"], name


if __name__ == "__main__" and sys.argv[1:] == ["write"]:
    write_json("stream.json", streams())
    write_json("plans.json", plans())
