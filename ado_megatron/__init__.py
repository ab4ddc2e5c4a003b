"""Adaptive data mixing for Megatron: the blend of domains follows scaling laws fitted to the run's own losses.

    prefixes + weights ──► Schedule: a small table of integers, one row a block of samples
                              │  locate(i) → (domain, j): a pure function of the table
                              ▼
    AdaptiveBlend ──► model and loss, unchanged ──► DomainMeter: loss sums per domain
                              ▲                        │ one all-reduce an interval
                              │                        ▼
    next rows ◄── policy ◄── laws L(n) = ε + β n^(−α), fitted beside the training

This module imports nothing, so that `import ado_megatron` is cheap in loader workers and fit processes. Each folder is
a step of the loop, or a command, and its `__init__` says what comes in and what goes out. Start reading at `mixer/`
(the loop) or `stream/` (the table); the command line is `ado-megatron --help`.
"""

__version__ = "0.1.0"
