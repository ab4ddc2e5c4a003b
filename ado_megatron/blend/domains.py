"""What is mixed: datasets (one per prefix), grouped into domains (what the policy acts on).

Legend: K domains, C datasets (one per prefix; C = K without groups).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.blend.indexed_files import is_text
from ado_megatron.blend.options import BlendOptions
from ado_megatron.errors import UserError
from ado_megatron.files import parse_json_or_yaml, read_text

_SUFFIXES = ("_text_document", "_text_sentence", "_document")
_SPLIT = re.compile(r"(.)[_-](train|training|valid|validation|val|dev|test|eval)$")


@dataclass(frozen=True, eq=False)
class Domains:
    """names_K, prefixes_C: what the user calls them. domain_of_C: the domain of each dataset. share_C: a dataset's part
    of its domain (sums to 1 in each). lengths_C: samples of one epoch. prior_K: sums to 1. stream_id_C: identity of
    each dataset in the sample order (63 bits of a hash of the prefix's last path component, so data may move between
    directories, and datasets may be added, removed or reordered while the others keep their order). documents_C: if
    known. content_C: digests of what they say (indexed_files.sampled_content), if known.
    """

    names_K: tuple[str, ...]
    prefixes_C: tuple[str, ...]
    domain_of_C: np.ndarray
    share_C: np.ndarray
    lengths_C: np.ndarray
    prior_K: np.ndarray
    stream_id_C: np.ndarray
    documents_C: np.ndarray | None = None
    content_C: np.ndarray | None = None

    @classmethod
    def build(
        cls, prefixes: Iterable[Any], weights_C: ArrayLike | None, lengths_C: ArrayLike, config: BlendOptions,
        documents_C: ArrayLike | None = None, content_C: ArrayLike | None = None,
    ) -> Domains:  # fmt: skip
        """From a blend as Megatron takes it.

        weights_C: the user's weights (any positive sum; None: by length). Of `config`: prior, temperature and groups.
        Raises UserError naming the prefix: doubled, empty, of a bad weight, in no group or in two.
        """
        prefixes_C = tuple(str(prefix) for prefix in prefixes)
        length_C = np.array(lengths_C, dtype=np.int64)
        weight_C = length_C.astype(np.float64) if weights_C is None else np.array(weights_C, dtype=np.float64)
        _check_blend(prefixes_C, weight_C, length_C)
        if config.groups is None:
            names_K, domain_of_C = _names(prefixes_C), np.arange(len(prefixes_C))
        else:
            names_K, domain_of_C = _grouped(prefixes_C, config.groups)
        share_C = _shares(weight_C, length_C, domain_of_C, len(names_K))
        prior_K = _prior(weight_C, length_C, domain_of_C, len(names_K), config)
        known = (None if facts is None else np.array(facts, dtype=np.int64) for facts in (documents_C, content_C))
        return cls(names_K, prefixes_C, domain_of_C, share_C, length_C, prior_K, _stream_ids(prefixes_C), *known)

    def weights_C(self, weights_K: np.ndarray) -> np.ndarray:
        """Weights of datasets from weights of domains: weights_C."""
        return np.asarray(weights_K)[self.domain_of_C] * self.share_C

    def by_domain(self, count_C: np.ndarray) -> np.ndarray:
        """Counts of datasets summed into domains: count_K, int64."""
        count_K = np.zeros(len(self.names_K), dtype=np.int64)
        np.add.at(count_K, self.domain_of_C, count_C)
        return count_K

    def by_domain_many(self, count_TxC: np.ndarray) -> np.ndarray:
        """`by_domain` of many rows: count_TxK, int64."""
        if len(self.names_K) == len(self.prefixes_C) and (self.domain_of_C == np.arange(len(self.names_K))).all():
            return np.asarray(count_TxC, dtype=np.int64)
        count_KxT = np.zeros((len(self.names_K), len(count_TxC)), dtype=np.int64)
        np.add.at(count_KxT, self.domain_of_C, np.asarray(count_TxC, dtype=np.int64).T)
        return count_KxT.T

    def domain_of_name(self, name: str) -> int:
        """The number of a domain; UserError with the names there are."""
        if name not in self.names_K:
            raise UserError(f"there is no domain {name!r}; the domains are {', '.join(self.names_K)}")
        return self.names_K.index(name)

    def extended(self, prefixes: Iterable[Any], config: BlendOptions) -> tuple[tuple[str, ...], list[int]]:
        """Where other data, such as validation prefixes, belongs: (our names and then theirs, number of each prefix).

        A prefix is of a domain of ours if one of its datasets has the same prefix or, without Megatron's suffix and the
        name of a split (`wiki_valid_text_document` is `wiki`), the same last path component; or if the patterns of its
        group match. A prefix that fits none, or more than one, is under a name of its own.
        """
        groups = _read_groups(config.groups) if config.groups is not None else {}
        fitting = {prefix: self._fitting(prefix, groups) for prefix in map(str, prefixes)}
        others = [prefix for prefix, number in fitting.items() if number is None]
        number_of = {prefix: number for prefix, number in fitting.items() if number is not None}
        names = [prefix if name in self.names_K else name for prefix, name in zip(others, _names(others), strict=True)]
        number_of |= {prefix: len(self.names_K) + n for n, prefix in enumerate(others)}
        return (*self.names_K, *names), [number_of[str(prefix)] for prefix in prefixes]

    def _fitting(self, prefix: str, groups: dict[str, list[str]]) -> int | None:
        def domains(same: Callable[[str], bool]) -> set[int]:
            return {int(k) for k, p in zip(self.domain_of_C, self.prefixes_C, strict=True) if same(p)}

        fitting = domains(lambda p: p == prefix) or domains(lambda p: _plain(p) == _plain(prefix))
        fitting = fitting or {
            self.names_K.index(name) for name, patterns in groups.items() if any(_matches(prefix, p) for p in patterns)
        }  # fmt: skip
        return fitting.pop() if len(fitting) == 1 else None

    def fingerprint(self, *, content: bool = True) -> str:
        """Hex digest of what saved state depends on: identity, length and documents of each dataset, and the
        grouping. content: with what their files say, where it is known; before it was, states were saved without it.
        """
        facts: list[Any] = [
            list(self.names_K), self.domain_of_C.tolist(), self.stream_id_C.tolist(), self.lengths_C.tolist(),
            None if self.documents_C is None else self.documents_C.tolist(),
        ]  # fmt: skip
        if content and self.content_C is not None:
            facts.append(self.content_C.tolist())
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _check_blend(prefixes_C: tuple[str, ...], weights_C: np.ndarray, lengths_C: np.ndarray) -> None:
    if not len(prefixes_C) == len(weights_C) == len(lengths_C):
        raise UserError(
            f"the blend has {len(prefixes_C)} prefixes, {len(weights_C)} weights and {len(lengths_C)} lengths; "
            "give one weight for each prefix"
        )
    if not prefixes_C:
        raise UserError("the blend has no prefix; give at least one")
    if len(set(prefixes_C)) != len(prefixes_C):
        twice = next(prefix for prefix in prefixes_C if prefixes_C.count(prefix) > 1)
        raise UserError(f"prefix {twice} is in the blend twice; give it once, with the sum of its weights")
    for prefix in prefixes_C:
        if not is_text(prefix):
            raise UserError(f"the blend has the prefix {prefix!r}, which is not UTF-8; rename the files, or link them")
    for prefix, weight, length in zip(prefixes_C, weights_C, lengths_C, strict=True):
        if not (np.isfinite(weight) and weight >= 0):
            raise UserError(f"prefix {prefix} has weight {weight}; weights are finite and not negative")
        if length < 1:
            raise UserError(f"prefix {prefix} holds no sample of this sequence length; remove it from the blend")
    with np.errstate(over="ignore"):
        total = weights_C.sum()
    if total <= 0:
        raise UserError("all weights of the blend are zero; give at least one prefix a positive weight")
    if not np.isfinite(total):
        raise UserError("the weights of the blend are too large to be added up; divide all of them by the same number")


def _stem(prefix: str) -> str:
    name = PurePosixPath(prefix).name
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _plain(prefix: str) -> str:
    """The stem without the name of a split at its end."""
    return _SPLIT.sub(r"\1", _stem(prefix))


def _names(prefixes_C: Sequence[str]) -> tuple[str, ...]:
    """The shortest distinct names: last path components without Megatron's suffix, else more of the path, else all of
    it."""
    for depth in range(4):
        names = tuple("/".join([*PurePosixPath(p).parts[-1 - depth : -1], _stem(p)]) for p in prefixes_C)
        if len(set(names)) == len(names):
            return names
    return tuple(prefixes_C)


def _stream_ids(prefixes_C: Sequence[str]) -> np.ndarray:
    """One 63-bit integer a dataset: stream_id_C; equal last components are told apart by their order in the blend."""
    seen: dict[str, int] = {}
    ids = []
    for prefix in prefixes_C:
        name = PurePosixPath(prefix).name
        seen[name] = seen.get(name, 0) + 1
        digest = hashlib.blake2b(f"{name}\0{seen[name]}".encode(), digest_size=8).digest()
        ids.append(int.from_bytes(digest, "little") >> 1)
    return np.array(ids, dtype=np.int64)


def _read_groups(path: str) -> dict[str, list[str]]:
    text = read_text(path, f"--ado-groups: cannot read {path}")
    groups = parse_json_or_yaml(text, f"--ado-groups: {path}")
    if not isinstance(groups, dict) or not groups:
        raise UserError(f"--ado-groups: {path} must map each domain to a list of prefixes or globs")
    groups = {str(name): [item] if isinstance(item, str) else item for name, item in groups.items()}
    for name, patterns in groups.items():
        if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) for p in patterns):
            raise UserError(f"--ado-groups: domain {name!r} in {path} must have a list of prefixes or globs")
    return groups


def _grouped(prefixes_C: Sequence[str], path: str) -> tuple[tuple[str, ...], np.ndarray]:
    groups = _read_groups(path)
    unused = {(name, pattern) for name, patterns in groups.items() for pattern in patterns}
    domain_of_C = []
    for prefix in prefixes_C:
        matches = [(name, p) for name, patterns in groups.items() for p in patterns if _matches(prefix, p)]
        names = list(dict.fromkeys(name for name, _ in matches))
        unused.difference_update(matches)
        if not names:
            raise UserError(f"--ado-groups: prefix {prefix} is in no domain of {path}; add it to one")
        if len(names) > 1:
            raise UserError(
                f"--ado-groups: prefix {prefix} is in the domains {' and '.join(names)} of {path}; keep one"
            )
        domain_of_C.append(list(groups).index(names[0]))
    if unused:
        name, pattern = min(unused)
        raise UserError(f"--ado-groups: {pattern!r} of domain {name!r} in {path} matches no prefix of the blend")
    return tuple(groups), np.array(domain_of_C)


def _matches(prefix: str, pattern: str) -> bool:
    """Exactly or as a glob: the whole prefix, its last component, or that without Megatron's suffix."""
    return any(text == pattern or fnmatchcase(text, pattern) for text in (prefix, Path(prefix).name, _stem(prefix)))


def _shares(
    weights_C: np.ndarray, lengths_C: np.ndarray, domain_of_C: np.ndarray, num_domains: int
) -> np.ndarray:
    """A dataset's part of its domain: the user's proportions, or by length where a domain has no weight at all."""
    total_K = np.bincount(domain_of_C, weights_C, minlength=num_domains)
    size_K = np.bincount(domain_of_C, lengths_C.astype(np.float64), minlength=num_domains)
    by_weight_C = weights_C / np.where(total_K > 0, total_K, 1.0)[domain_of_C]
    return np.where(total_K[domain_of_C] > 0, by_weight_C, lengths_C / size_K[domain_of_C])


def _prior(
    weights_C: np.ndarray, lengths_C: np.ndarray, domain_of_C: np.ndarray, num_domains: int, config: BlendOptions
) -> np.ndarray:
    """μ: the user's weights, shares of the data (all samples have the same tokens), equal, or shares^(1/τ)."""
    mass_K: np.ndarray
    if config.prior == "given":
        mass_K = np.bincount(domain_of_C, weights_C, minlength=num_domains)
    elif config.prior == "uniform":
        mass_K = np.full(num_domains, 1.0)
    else:
        mass_K = np.bincount(domain_of_C, lengths_C.astype(np.float64), minlength=num_domains)
        if config.prior == "temperature":
            mass_K = (mass_K / mass_K.max()) ** (1.0 / config.temperature)
    return mass_K / mass_K.sum()
