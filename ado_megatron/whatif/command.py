"""`ado-megatron whatif RUN`: what another mixture from here on would come to, by the laws of the run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ado_megatron.errors import UserError
from ado_megatron.option_fields import Parser
from ado_megatron.steer.check import what_of
from ado_megatron.steer.command import asked_of
from ado_megatron.steer.journal import Entry, in_force
from ado_megatron.whatif.course import lay_out, planner_of
from ado_megatron.whatif.outlook import outlook
from ado_megatron.whatif.situation import Situation
from ado_megatron.whatif.table import Answer, as_json, text

_ID = 1 << 40  # of the proposal: after every entry that a run has granted


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(prog="ado-megatron whatif", description="What another mixture from here on would come to, by the laws "
               "of the newest checkpoint. Nothing of the run is touched; `ado-megatron set` does what is found good.")
    add = p.add_argument
    add("run", metavar="RUN", help="run directory: the one that holds ado/")
    add("--set", dest="pins", action="append", default=[], metavar="DOMAIN=SHARE",
        help="pin a share: code=.3, wiki=30%%, or wiki=+10%% of what it has; several times for several")
    add("--unpin", action="append", metavar="DOMAIN", help="give a share back to the policy")
    add("--policy", metavar="NAME", help="another policy: static, ado, plan")
    add("--static", dest="policy", action="store_const", const="static", help="the prior from here on: --policy static")
    add("--hold", action="store_true", help="the weights in force stay as they are")
    add("--target", metavar="TARGET", help="another target, as of `ado-megatron set`")
    add("--floor", metavar="SHARES", help="least shares: .01 for all, maths=.05, or both with a comma")
    add("--ceiling", metavar="SHARES", help="greatest shares, in the same way")
    add("--max-epochs", metavar="EPOCHS", help="caps on epochs: 4, wiki=2, or both with a comma")
    add("--until", type=int, metavar="STEP", help="look at this step (of full batches) and not at the end of the run")
    add("--json", action="store_true", help="one JSON object")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0; UserError, one sentence, for a run or a proposal that cannot be."""
    options = parser().parse_args(argv)
    situation = Situation.of_run(options.run)
    found = answer(situation, asked(options), options.until)
    print(json.dumps(as_json(found)) if options.json else text(found))
    return 0


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """What is proposed, in the words of `ado-megatron set`."""
    return asked_of(argparse.Namespace(**vars(options), release=False, refit_now=False, undo=False))


def answer(situation: Situation, proposal: dict[str, Any], until: int | None = None) -> Answer:
    """The run as it goes on against the proposal. UserError for what cannot be granted or fed."""
    until = situation.num_blocks if until is None else until
    first = situation.first_block
    if first >= situation.num_blocks:
        raise UserError(f"all {first:,} blocks of the run are planned already, so nothing can be changed any more")
    if not first < until <= situation.num_blocks:
        raise UserError(
            f"blocks up to {first:,} of {situation.num_blocks:,} are planned already, so nothing can be asked until "
            f"step {until:,}; give --until a step from {first + 1:,} to {situation.num_blocks:,}"
        )
    if not proposal:
        raise UserError("nothing is proposed; give --set DOMAIN=SHARE, --policy NAME, --static or --hold")
    before = planner_of(situation, situation.entries)
    before.plan(1)
    steering = in_force(situation.entries, first)
    what = what_of(
        proposal, domains=situation.domains, config=situation.config, steering=steering,
        weights_K=before.weights_K(first),
    )
    entry = Entry(_ID, first, situation.step, "whatif", "", what, steering.before(what))
    now = lay_out(situation, until)
    other = lay_out(situation, until, [*situation.entries, entry])
    changed = in_force([*situation.entries, entry], first)
    return Answer(situation, entry, now, other, outlook(situation, now, other, changed.target))
