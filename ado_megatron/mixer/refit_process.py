"""A refit in a process of its own, beside the training: the fit of the laws, and the rows that they decide.

Rank zero hands its planner's state over with the history. The child fits, lays the rows of the interval out under the
new laws, and leaves both; rank zero checks and adopts them. What is computed does not depend on where: the child runs
the planner that rank zero would run, from the same state. Where the child fails, or rows are asked for that it was not
asked for, rank zero plans itself.

Legend: K domains, C datasets, S rows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.planner import Planner
from ado_megatron.npz import nest, unnest
from ado_megatron.scaling_law.fit_process import MORE, MORE_RESULT, begin, fit_in
from ado_megatron.scaling_law.laws import Laws

PROGRAM = "ado_megatron.mixer.refit_process"


def request(planner: Planner, num_rows: int) -> dict[str, np.ndarray]:
    """The arrays with which `main` plans `num_rows` rows where `planner` stands: nothing of them is read from a file
    that may change while the run goes on."""
    fields = {spec.name: getattr(planner.domains, spec.name) for spec in dataclasses.fields(Domains)}
    arrays: dict[str, Any] = nest("domains.", {name: value for name, value in fields.items() if value is not None})
    arrays |= nest("at.", planner.hand_over())
    arrays["config"] = json.dumps(planner.config.to_dict() | {"target": "prior"})
    arrays |= {"num_rows": num_rows, "block_size": planner.block_size, "num_blocks": planner.num_blocks or 0}
    arrays |= {"target_K": planner.target_K, "caps_C": [] if planner.caps_C is None else planner.caps_C}
    return {name: np.asarray(value) for name, value in arrays.items()}


def planner_of(arrays: dict[str, np.ndarray]) -> Planner:
    """The planner that a request describes, where it stood."""
    values: dict[str, Any] = unnest("domains.", arrays)
    for name in ("names_K", "prefixes_C"):
        values[name] = tuple(values[name].tolist())
    caps_C = arrays["caps_C"] if arrays["caps_C"].size else None
    planner = Planner(
        AdoConfig.from_dict(json.loads(str(arrays["config"]))), Domains(**values), int(arrays["block_size"]), caps_C,
        int(arrays["num_blocks"]), arrays["target_K"],
    )  # fmt: skip
    planner.take_over(unnest("at.", arrays))
    return planner


def main(directory: str, parent: str) -> None:
    """The child of process `parent`: fit, then plan under the laws that are then in force, and leave both in
    `directory`."""
    begin(parent)
    folder = Path(directory)
    laws = fit_in(folder)
    try:
        _plan(folder, laws)
    except Exception:  # the laws are there: rank zero lays out the rows itself, and meets what is wrong, if it is
        traceback.print_exc()


def _plan(folder: Path, laws: Laws) -> None:
    """Lay out the rows that `folder` asks for under `laws`, and leave them there."""
    with np.load(folder / MORE, allow_pickle=False) as npz:
        arrays = {name: npz[name] for name in npz.files}
    planner = planner_of(arrays)
    planner.laws = laws.merged(planner.laws)
    partial = folder / f"partial-{MORE_RESULT}"
    np.savez(partial, **planner.plan_for(int(arrays["num_rows"])))  # type: ignore[arg-type]  # numpy's stub
    os.replace(partial, folder / MORE_RESULT)


if __name__ == "__main__":
    main(*sys.argv[1:])
