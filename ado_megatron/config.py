"""AdoConfig: every option of ADO. Those of a wing stand in its options.py; here are those of the run itself.

Algorithm options default to None, which means "what the profile sets" (profiles.py, ALGORITHM.md); `resolved()` fills
them in. Everything else has a plain default.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pathlib
from dataclasses import dataclass
from typing import Any

from ado_megatron import option_fields, profiles
from ado_megatron.blend.options import BlendOptions
from ado_megatron.option_fields import flag_of, option
from ado_megatron.policy.options import PolicyOptions
from ado_megatron.policy.registry import WITHOUT_LAWS, check_policy_name
from ado_megatron.profiles import PREFIX


@dataclass(frozen=True, kw_only=True)
class AdoConfig(PolicyOptions, BlendOptions):
    """Options of the mixer, all of them. Raises UserError for a value outside its documented range."""

    refit_interval: int = option(1000, "steps between two refits of the laws", low=1, resume="free")
    early_refits: bool | None = option(
        None, "refit at start_step and at its doublings until refit_interval",
        kind=bool, resume="free",
    )
    fit_lag: int | None = option(
        None,
        "blocks between the snapshot of the history and the first block laid out with its laws; 0 is synchronous; "
        "default: the lead plus a small reserve",
        kind=int, low=0, resume="free", compare=False,
    )
    seed: int = option(1234, "seed of the sample order", low=0, resume="fixed")
    off: bool = option(False, "leave the framework's own blending in place", resume="silent")
    audit: bool = option(False, "record every sample drawn, for `ado-megatron audit`", resume="silent", compare=False)
    validation: bool = option(
        False,
        "under a framework, report its validation and test losses by domain (`ado-megatron pretrain` always does)",
        resume="silent", compare=False,
    )
    log_interval: int = option(10, "steps between two lines of metrics.jsonl", low=1, resume="silent", compare=False)
    wait_deadline: float = option(
        600.0, "seconds a reader waits for a row not yet planned",
        above=0.0, resume="silent", compare=False,
    )
    fit_deadline: float = option(
        120.0, "seconds that the training waits for a late fit before the old laws stay; at most 0.4 of the process "
        "group's timeout",
        above=0.0, resume="silent", compare=False,
    )
    lead: int | None = option(
        None, "blocks planned ahead of the readers; default: from workers and prefetch",
        kind=int, low=1, resume="free", compare=False,
    )
    prometheus: str | None = option(
        None, "text file with what boards show, for Prometheus' node exporter; rank zero writes it anew with each log "
        "line",
        kind=str, resume="silent", ranks="free", compare=False,
    )
    accept_changes: bool = option(
        False,
        "on resume, go on although data or algorithm options differ from the saved ones; domains that are the "
        "same keep their positions",
        resume="silent", compare=False,
    )

    accept_data: str | None = option(
        None,
        "on resume, go on although datasets were added, removed, grown or moved (one or more of these words, with "
        "commas): what stays keeps its position, what comes or has grown starts at its first sample; moved is one at "
        "another path, under its name or, with the same content, under another",
        kind=str, resume="silent", compare=False,
    )

    def refit_at(self, step: int) -> bool:
        """True if the laws are fitted on the history up to and including `step` (0-based)."""
        start = self.value("start_step")
        if step < start or self.value("policy") in WITHOUT_LAWS:
            return False
        if step % self.refit_interval == 0:
            return True
        # start, 2·start, 4·start, … while they come before the first regular refit
        return bool(
            self.value("early_refits") and step < self.refit_interval and start > 0
            and step % start == 0 and (step // start).bit_count() == 1
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What every rank must have started with alike, by flag: values and, of files, a digest of what they say."""
        facts: dict[str, Any] = {}
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if spec.metadata["ranks"] == "value":
                facts[flag_of(spec.name, PREFIX)] = value
            elif spec.metadata["ranks"] == "content":
                facts[f"content of {flag_of(spec.name, PREFIX)}"] = _content(value)
        return facts

    def fingerprint(self) -> str:
        """Hex digest of all that decides the stream and the laws; equal for runs that may continue one another."""
        values = {}
        for spec in dataclasses.fields(self):
            if spec.metadata["ranks"] == "content":
                values[spec.name] = _content(getattr(self, spec.name))
            elif spec.metadata["resume"] != "silent":
                values[spec.name] = self.value(spec.name)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds --ado-NAME for every field (booleans also --no-ado-NAME)."""
        more_help = {}
        for name in profiles.OPTIONS:
            values = "/".join(str(profiles.profile(known)[name]) for known in profiles.NAMES)
            more_help[name] = f"[{'/'.join(profiles.NAMES)}: {values}]"
        group = parser.add_argument_group("ado", "adaptive data mixture")
        option_fields.add_arguments(group, cls, PREFIX, more_help)

    @classmethod
    def from_args(cls, namespace: argparse.Namespace) -> AdoConfig:
        """The config of parsed arguments; a flag that the namespace lacks keeps its default. Raises UserError.

        The policy's name is checked here and not in the options themselves, which may be those of a saved run whose
        policy is of a package that the reader has not installed.
        """
        config = option_fields.from_args(cls, namespace, PREFIX)
        check_policy_name(config.value("policy"))
        return config


def _content(path: str | None) -> str | None:
    """A file counts by what it says, not by where it lies; one that is not there yet by its name."""
    try:
        if path is None or not pathlib.Path(path).is_file():
            return path
    except OSError:  # too long for a path: the option has other forms, too
        return path
    return pathlib.Path(path).read_text(errors="backslashreplace")  # a sidecar is no text
