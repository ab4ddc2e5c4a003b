"""`ado-megatron whatif RUN`: what another mixture from here on would come to, by the laws of the run.

In: the newest sidecar of a run and the header of its metrics.jsonl; what is proposed. Out: for the run as it goes on
and for the proposal, the loss of each domain at the end, the difference with its standard error, epochs, what runs out,
what caps forbid, and what the answer rests on that was never seen. Nothing of the run is touched.

    situation = Situation.of_run("runs/first")
    print(text(answer(situation, {"pins": {"code": 0.3}})))

    command.py    options, and what is proposed
    situation.py  where the run stands
    course.py     the rest of the run, laid out by the run's own planner
    outlook.py    losses at its end, and how well they are known
    table.py      the words and numbers of the answer
"""

from ado_megatron.whatif.command import answer
from ado_megatron.whatif.situation import Situation
from ado_megatron.whatif.table import Answer, text

__all__ = ["Answer", "Situation", "answer", "text"]
