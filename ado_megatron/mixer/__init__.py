"""The loop on all ranks: what is measured comes in, rows of the table go out, and a file beside each checkpoint.

In: the options, the domains, a `World` (this process among all), loss sums per domain from the meter of every rank.
Out: the schedule, the same on every rank, extended from refit to refit; `ado/metrics.jsonl`; a sidecar at each save.

    mixer = Mixer(config, domains, total_samples=…, block_size=…, world=World.detect(contributes), run_dir=…)
    mixer.start()
    for step in range(steps):
        mixer.begin_step(step)
        …                                   # draw samples of mixer.schedule, mixer.meter.add(loss, mask, key)
        mixer.end_step(step, consumed_samples)

    mixer.py           the loop: every collective is called here or in world.py
    rank_zero.py       what rank zero remembers and decides; talks to nobody
      planner.py       laws and policy to rows of integers (plan_point.py: its state; rows.py: a stretch of rows)
      refit_process.py a fit, and the rows that its laws decide, in a process beside the training
      recorder.py      reduced sums to the history and to metrics.jsonl
    refit_schedule.py  when laws are fitted and from which block they hold
    loader.py          what the data loader holds in flight
    resume.py          what a saved state means to a run that is not quite the same
    sidecar.py         the file of that state
    world.py           where ranks talk
    stop_notice.py     how one rank's failure ends all of them, without a collective
    owner_lock.py      one run at a time in a run directory
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ado_megatron.mixer.loader import LoaderSettings
    from ado_megatron.mixer.mixer import Mixer
    from ado_megatron.mixer.world import World

__all__ = ["LoaderSettings", "Mixer", "World"]
_WHERE = {"LoaderSettings": "loader", "Mixer": "mixer", "World": "world"}


def __getattr__(name: str) -> Any:
    """The public names, imported when asked for: the process that plans beside the training needs no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
