"""A planner over made-up domains and laws, driven as a run drives it: calls of `plan` with laws in between.

Legend: K domains, C datasets, S rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.planner import Planner
from ado_megatron.scaling_law.laws import Laws

START = 12  # first block whose step may take laws


def some_laws(num_domains: int, seed: int, transfer: float) -> Laws:
    """Laws as fits give them; the last domain has none."""
    rng = np.random.default_rng(seed)
    laws_Kx3 = np.stack(
        [rng.uniform(0, 3, num_domains), rng.uniform(-0.5, 1, num_domains), rng.uniform(0.05, 0.6, num_domains)], axis=1
    )
    laws_Kx3[-1] = np.nan
    return Laws.given(laws_Kx3, transfer)


def planner_of(
    tmp_path: Path, *, domains: int, block: int = 512, shape: float = 1.0, groups: bool = False,
    caps: float | None = None, rows: int = 60, **options,
) -> Planner:  # fmt: skip
    """A planner with two datasets a domain under `groups`. caps: those of the datasets that the prior would draw most
    are this part of what it would draw; there is just enough elsewhere."""
    rng = np.random.default_rng(7)
    num_datasets = 2 * domains if groups else domains
    prefixes = [f"data/part{c:05d}_text_document" for c in range(num_datasets)]
    weights_C = rng.dirichlet(np.full(num_datasets, shape)) + 1e-9
    if groups:
        path = tmp_path / "groups.json"
        path.write_text(json.dumps({f"domain{k}": prefixes[2 * k : 2 * k + 2] for k in range(domains)}))
        options["groups"] = str(path)
    config = AdoConfig(**{"policy": "ado", "start_step": START, "max_change": 1.0} | options).resolved()
    found = Domains.build(prefixes, weights_C, rng.integers(1000, 10**6, num_datasets), config)
    caps_C = None
    if caps is not None:
        wanted_C = np.ceil(rows * block * weights_C / weights_C.sum())
        caps_C = np.where(rng.random(num_datasets) < 0.3, caps * wanted_C, 4 * wanted_C + block).astype(np.int64)
    return Planner(config, found, block, caps_C)


def drive(planner: Planner, rows: int = 60) -> np.ndarray:
    """counts_SxC of a short run: calls of different lengths, first laws after 20 rows, others after 41."""
    num_domains, transfer = len(planner.domains.names_K), planner.config.given_transfer
    parts = [planner.plan(7), planner.plan(13)]
    planner.laws = some_laws(num_domains, 1, transfer)
    parts += [planner.plan(1), planner.plan(20)]
    planner.laws = some_laws(num_domains, 2, transfer)
    parts.append(planner.plan(rows - 41))
    return np.concatenate(parts)
