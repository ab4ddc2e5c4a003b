"""What a run sees of itself: losses by domain, what is written about them, what each rank drew.

In: per-token losses with the keys of their samples, on every rank; sums of steps, laws and validations, on rank zero;
the samples that a rank drew. Out: `[steps, K, 2]` sums on the device (meter.py, which needs torch and is imported from
there), `ado/metrics.jsonl`, and one draw log a rank for `ado-megatron audit`.

    records = read_metrics("runs/first/ado/metrics.jsonl")     # the header, then steps, fits, validations, …
    records[1].array("loss_K", len(records[0]["domains"]))     # checked: UserError names file, line and what is wrong

    meter.py           sums of losses on the device, without waiting for it
    metrics.py         the form of metrics.jsonl and its one reader;   record.py: a line, its values checked
    metrics_writer.py  its one writer, which no full disk can stop;   carried.py: its records where the domains change
    draw_log.py        what each rank drew and computed a loss on;   draw_file.py: reads it
    draw_check.py      what the draws of a run must satisfy
    board_names.py     names on boards;   boards.py: writes to them;   prometheus.py: one of them is a text file
"""

from ado_megatron.measure.draw_file import DrawFile
from ado_megatron.measure.draw_log import DrawLog
from ado_megatron.measure.metrics import MetricsFollower, read_metrics
from ado_megatron.measure.metrics_writer import MetricsWriter, StepGroups
from ado_megatron.measure.record import Record

__all__ = ["DrawFile", "DrawLog", "MetricsFollower", "MetricsWriter", "Record", "StepGroups", "read_metrics"]
