"""Changing a run by hand while it goes on: `ado-megatron set RUN …`.

A request is a file that rank zero finds. What it grants becomes an entry of the run's journal: from block B on these
settings are others. The journal is part of the run's state, and what holds in a block is a pure function of it:

    steering = in_force(entries, block)                     # pins, floors, ceilings, caps, policy, target, hold
    lower_K, upper_K = bounds(steering, names_K)
    weights_K = shaped(policy_weights_K, lower_K, upper_K)  # the policy runs on; what it says is bent to the bounds

    steering.py   what an operator has set, and what it makes of weights and options
    journal.py    the entries, what holds in a block, the file beside the sidecar
    words.py      what the command line says, as plain values
    check.py      what a run grants: from words to an entry, or one sentence why not
    requests.py   request and answer as files, and who may ask
    command.py    the command

Legend: K domains, C datasets (one per prefix).
"""

from ado_megatron.steer.journal import Entry, in_force, read_journal
from ado_megatron.steer.steering import Steering, bounds, shaped

__all__ = ["Entry", "Steering", "bounds", "in_force", "read_journal", "shaped"]
