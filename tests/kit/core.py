"""What differs between the releases of megatron-core that the tests run on (0.16.1 to 0.19.2), in one place.

Imports of megatron.core stand in the functions: not every test that imports this kit has it.
"""

import inspect
import math


def batch_ramp(total, start, increment, ramp_samples):
    """megatron-core's calculator of a batch that grows from `start` to `total` sequences, one data-parallel rank.

    The class for ramps is gone from 0.17 on; the same ramp is then a schedule of steps, each at the first sample at
    which the old class takes it.
    """
    from megatron.core import num_microbatches_calculator as module

    if start == total:
        return module.ConstantNumMicroBatchesCalculator(total, 1, 1, False, 1)
    if hasattr(module, "RampupBatchsizeNumMicroBatchesCalculator"):
        ramp = (start, increment, ramp_samples)
        return module.RampupBatchsizeNumMicroBatchesCalculator(total, 1, 1, False, 1, *ramp)
    steps = (total - start) // increment
    firsts = [math.ceil(ramp_samples * i / steps) for i in range(steps + 1)]
    schedule = " ".join(f"{first}:{start + i * increment}" for i, first in enumerate(firsts))
    return module.StepBatchsizeNumMicroBatchesCalculator(1, 1, False, 1, schedule)


def cut_for_context_rank(batch):
    """The part of a batch (dict of BxL tensors) that this context-parallel rank has."""
    from megatron.core import parallel_state
    from megatron.core.utils import get_batch_on_this_cp_rank

    if "is_hybrid_cp" not in inspect.signature(get_batch_on_this_cp_rank).parameters:
        return get_batch_on_this_cp_rank(batch)
    group = parallel_state.get_context_parallel_group()
    cut = get_batch_on_this_cp_rank(batch | {"cu_seqlens": None}, is_hybrid_cp=False, cp_group=group)
    return {name: value for name, value in cut.items() if name in batch}
