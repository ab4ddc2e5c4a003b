"""`ado-megatron replay TRACE`: what a policy would have answered to a recorded run, without training.

In: an .npz trace, or the metrics.jsonl of a run. Out: the weights after every step and the laws of every refit, as
arrays, a picture, or a fixed mixture for --data-path.

    result = replay(read_trace("runs/first"), AdoConfig(start_step=100))
    result.weights_TxK[-1]                   # the weights in force after the last step

    trace.py    what was recorded, checked;   command.py: the replay and its command line;   plot.py: its picture
"""

from ado_megatron.replay.command import Replay, replay
from ado_megatron.replay.trace import Trace, read_trace

__all__ = ["Replay", "Trace", "read_trace", "replay"]
