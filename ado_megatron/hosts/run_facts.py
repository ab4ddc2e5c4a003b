"""What a session knows of the framework's run."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What the mixer must know of the framework's arguments and of this rank's place.

    layout: what the framework's own order of samples depends on (takeover.layout_facts).
    total_samples: train samples of the whole run. block_size: the (final) global batch. iteration, consumed_samples:
    where the loaded checkpoint stands, 0 without one. save, load: checkpoint directories. contributes: last pipeline
    stage, first tensor rank, first sequence-parallel rank.
    """

    total_samples: int
    block_size: int
    micro_batch: int
    dp: int
    num_workers: int
    iteration: int
    consumed_samples: int
    save: str | None
    load: str | None
    tensorboard: str | None
    log_interval: int
    contributes: bool
    device: Any
    layout: dict[str, Any]
