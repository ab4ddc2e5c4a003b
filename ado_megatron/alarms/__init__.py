"""Alarms: what a person should look at, told from what rank zero knows at a refit anyway.

In: the loss history, the laws, the samples and tokens measured, the supply. Out: alarms, each with the domain, the
evidence and what to look at; a run logs them and writes them in metrics.jsonl. Nothing here talks to other ranks, or
stops a training.

    alarms = Alarms(domains.names_K)
    for alarm in alarms.at_refit(Refit(...)):
        print(alarm.text)

    alarms.py  when an alarm is raised;   memory.py  what is remembered from one refit to the next
    losses.py  a domain's loss since the last refit: its mean, its error, and what its law had foretold
    supply.py  what runs out, what was drawn and not measured;   ranks.py  which rank had more or less than its part
"""

from ado_megatron.alarms.alarms import Alarm, Alarms, Refit

__all__ = ["Alarm", "Alarms", "Refit"]
