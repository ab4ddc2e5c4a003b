"""`ado-megatron set RUN …`: change a run that goes on, and say from where the change holds."""

from __future__ import annotations

import datetime
import json
import socket
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ado_megatron.errors import UserError
from ado_megatron.files import parse_json_or_yaml
from ado_megatron.option_fields import Parser
from ado_megatron.policy.target import WORDS
from ado_megatron.steer import words
from ado_megatron.steer.journal import NAME, Entry, read_journal
from ado_megatron.steer.requests import WAIT, ask


def main(argv: Sequence[str]) -> int:
    """0 where the change was granted. Raises UserError, one sentence, where it was not."""
    args = _parser().parse_intermixed_args(argv)
    directory = Path(args.run) / "ado"
    if not directory.is_dir():
        raise UserError(f"{args.run} holds no ado/; give the directory of a run (of a host, that of its checkpoints)")
    asked = asked_of(args)
    if args.list:
        if asked:
            raise UserError("--list stands alone")
        return _list(directory, args.json)
    if not asked:
        raise UserError("nothing is asked for; `ado-megatron set --help` lists the changes")
    request = {"asked": asked, "at_step": args.at_step, "host": socket.gethostname()}
    answer = ask(directory, request, wait=args.wait, say=lambda text: print(text, file=sys.stderr))
    if "refused" in answer:
        raise UserError(answer["refused"])
    print(json.dumps(answer) if args.json else _in_words(answer))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="ado-megatron set", description="Change the mixture of a run that goes on, from the next block on that is "
        "not planned yet. Nothing is drawn twice or left out, and a resumed run does the same again.",
    )  # fmt: skip
    add = parser.add_argument
    add("run", help="directory of the run: it holds ado/")
    add("pins", nargs="*", metavar="DOMAIN=SHARE", help="pin a share: code=.3, wiki=30%%, or wiki=+10%% of what it has")
    add("--unpin", nargs="*", metavar="DOMAIN", help="give shares back to the policy; without a name: all")
    add("--policy", metavar="NAME", help="another policy: static, ado, plan, or one of yours")
    add("--target", metavar="TARGET", help=f"another target: {', '.join(WORDS)}, code=.4,web=.6, or a file of weights")
    add("--floor", metavar="SHARES", help="least shares: .01 for all, maths=.05, or both with a comma; none: no floor")
    add("--ceiling", metavar="SHARES", help="greatest shares, in the same way")
    add("--max-epochs", metavar="EPOCHS", help="caps on epochs: 4, wiki=2, or both with a comma; none: no cap")
    hold = parser.add_mutually_exclusive_group()
    hold.add_argument("--hold", action="store_true", help="the weights in force stay as they are")
    hold.add_argument("--release", action="store_true", help="end a hold")
    add("--refit-now", action="store_true", help="fit the laws as soon as can be")
    add("--undo", action="store_true", help="take the last change back that counts")
    add("--at-step", type=int, metavar="N", help="from step N on, counted from 0; default: the first not planned yet")
    add("--list", action="store_true", help="print the journal; nothing is changed")
    add("--json", action="store_true", help="one JSON object a line")
    add("--wait", type=float, default=WAIT, metavar="S", help="seconds to wait for rank zero's answer [%(default)g]")
    return parser


def asked_of(args: Namespace) -> dict[str, Any]:
    """What parsed arguments ask for, as rank zero takes it (check.py). Raises UserError for words that say nothing."""
    asked: dict[str, Any] = {}
    if args.pins:
        asked["pins"] = words.shares(args.pins, "set")
    if args.unpin is not None:
        asked["unpin"] = args.unpin or [words.EVERY]
    if args.policy is not None:
        asked["policy"] = args.policy
    if args.target is not None:
        asked["target"] = _target(args.target)
    for name in ("floor", "ceiling"):
        if getattr(args, name) is not None:
            asked[name] = words.bounds(getattr(args, name), f"--{name}")
    if args.max_epochs is not None:
        asked["max_epochs"] = words.epochs(args.max_epochs, "--max-epochs")
    if args.hold or args.release:
        asked["hold"] = args.hold
    asked |= {name: True for name in ("refit_now", "undo") if getattr(args, name)}
    return asked


def _target(text: str) -> str | dict[str, Any]:
    """A word, or weights by domain: a file is read here, since rank zero may not see it."""
    if text in WORDS:
        return text
    if "=" in text and not Path(text).is_file():
        return dict(words.weights(text.split(","), "--target"))
    try:
        values = parse_json_or_yaml(Path(text).read_text(encoding="utf-8"), f"--target: {text}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--target {text}: it is none of {', '.join(WORDS)}, has no domain=weight, and as a file it cannot be read "
            f"({getattr(error, 'strerror', None) or error})"
        ) from error
    if not isinstance(values, dict) or not values:
        raise UserError(f"--target: {text} must map domains to weights, such as code: 0.4")
    return values


def _in_words(answer: dict[str, Any]) -> str:
    """From where a change holds, in blocks and by the clock."""
    entry = Entry.from_dict(answer["entry"])
    when = "no step has been timed yet"
    if answer["seconds"] is not None:
        at = datetime.datetime.now() + datetime.timedelta(seconds=answer["seconds"])
        when = f"in about {_span(answer['seconds'])}, at {at:%H:%M:%S}"
    lines = [
        f"change {entry.id}: {describe(entry)}",
        f"holds from block {entry.block} on, {answer['blocks']} blocks after that of step {answer['step']} ({when})",
    ]
    return "\n".join(lines + [f"under these weights, {note}" for note in answer["notes"]])


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def describe(entry: Entry) -> str:
    """One change in words: `code pinned at 0.3 (was free)`."""
    return "; ".join(_one(key, value, entry.before.get(key)) for key, value in entry.what.items())


def _one(key: str, value: Any, before: Any) -> str:
    if key in ("pins", "floor", "ceiling", "max_epochs"):
        name = {"pins": "pin", "max_epochs": "epochs at most"}.get(key, key)
        old = {domain: _number((before or {}).get(domain)) for domain in value}
        return ", ".join(f"{domain}: {name} {_number(new)} (was {old[domain]})" for domain, new in value.items())
    if key == "target":
        shares = ", ".join(f"{domain} {share:.4g}" for domain, share in (value or {}).items())
        return f"target {shares}"
    if key == "hold":
        return "the weights are held" if value else "the weights are released"
    if key == "undo":
        return f"change {value} is undone"
    if key == "refit_after":
        return f"the laws are fitted after block {value}"
    return f"{key} {value} (was {before or 'as launched'})"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _list(directory: Path, as_json: bool) -> int:
    entries = read_journal(directory / NAME)
    for entry in entries:
        if as_json:
            print(json.dumps(entry.to_dict(), ensure_ascii=False))
        else:
            print(f"{entry.id:>3}  from block {entry.block:<8} {entry.when}  {entry.who}: {describe(entry)}")
    if not entries and not as_json:
        print(f"nothing was changed by hand in {directory.parent}")
    return 0

