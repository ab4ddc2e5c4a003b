"""What is seen: losses by domain, records for people, proofs of what was drawn.

In: per-token losses, masks and sample keys where the loss is computed; what rank zero measured; what each rank drew.
Out: sums per domain and step on the device (`DomainMeter.take`, summed over the world by the mixer), `metrics.jsonl`,
draw logs for `ado-megatron audit`.

    records = read_metrics("RUN/ado/metrics.jsonl")

    meter.py     sums of loss and tokens per domain, on the device (the one module here that needs torch)
    metrics.py   metrics.jsonl: the one writer, the one reader, what a record holds
    draw_log.py  what each rank drew, and what it computed a loss on
"""
