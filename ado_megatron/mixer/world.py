"""Where ranks talk: of all wings but hosts/ and trainer/, the only module that calls torch.distributed.

All topology is one boolean: a rank `contributes` when the losses it measures belong in the world's sum (last pipeline
stage, first tensor rank, first sequence-parallel rank; every data- and context-parallel rank). Then one sum over the
world is exact for every layout, and nothing else has to know about groups.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ado_megatron.errors import RanksDisagree, UserError


@dataclasses.dataclass
class Traffic:
    """Collectives issued so far by this rank and the bytes of their payloads (the benchmark reads it)."""

    calls: int = 0
    payload_bytes: int = 0

    def count(self, num_bytes: int) -> None:
        """One call more, with so many bytes."""
        self.calls += 1
        self.payload_bytes += int(num_bytes)


@dataclasses.dataclass(frozen=True)
class World:
    """This process among all processes of the run.

    rank, size: place in the default process group. contributes: see the module's docstring. device: where collective
    buffers live ("cpu" for gloo, the current GPU for nccl).
    """

    rank: int
    size: int
    contributes: bool
    device: torch.device
    traffic: Traffic = dataclasses.field(default_factory=Traffic, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not in a world of {self.size}")

    @classmethod
    def detect(cls, contributes: bool, device: torch.device | str = "cpu") -> World:
        """The world of the initialised default process group (or a world of one when there is none)."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), contributes, torch.device(device))
        return cls(0, 1, contributes, torch.device(device))

    @classmethod
    def single(cls) -> World:
        """A world of one process that contributes, on the CPU."""
        return cls(0, 1, True, torch.device("cpu"))

    @property
    def is_zero(self) -> bool:
        """Whether this is rank zero, which plans."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce `tensor` in place over the world; one collective."""
        if self.size > 1:
            dist.all_reduce(tensor)
            self.traffic.count(tensor.numel() * tensor.element_size())
        return tensor

    def broadcast(self, value: Any) -> Any:
        """Rank zero's `value` (anything picklable) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        value = box[0]
        self.traffic.count(_num_bytes(value))
        return value

    def run_on_rank_zero(self, compute: Callable[[], Any]) -> Any:
        """What `compute` returns on rank zero, the only one that runs it; its exception ends every rank.

        A UserError is raised as it is everywhere; of any other the other ranks know the text (RuntimeError).
        """
        value: Any = None
        caught: Exception | None = None
        told: Exception | None = None
        if self.is_zero:
            try:
                value = compute()
            except UserError as error:
                caught = told = error
            except Exception as error:  # noqa: BLE001 - the others wait in the broadcast
                caught, told = error, RuntimeError(f"{type(error).__name__} on rank 0: {error}")
        value, told = self.broadcast((value, told))
        if told is not None:
            raise caught or told
        return value

    def require_success(self, action: Callable[[], None], hint: Callable[[], str] = lambda: "") -> None:
        """Run `action` on this rank; stop every rank where it failed on one. Collective: one 8-byte sum if all is well.

        Raises UserError on every rank alike for an OSError or UserError of any: rank, what was wrong, and what `hint`
        says to do. Another exception is a fault of ours; it is raised where it happened, and told to the others.
        """
        problem, caught = None, None
        try:
            action()
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename or 'a file'} could not be written or read: {error.strerror or error}"
        except Exception as error:  # noqa: BLE001 - the others wait in the sum
            problem, caught = f"{type(error).__name__}: {error}", error
        failed = self.all_reduce_sum(torch.tensor([0 if problem is None else 1], dtype=torch.int64, device=self.device))
        if int(failed) == 0:
            return
        problems = {rank: text for rank, text in enumerate(self.gather(problem)) if text is not None}
        if caught is not None:
            raise caught
        first = min(problems)
        more = f" (and {len(problems) - 1} more ranks)" if len(problems) > 1 else ""
        where = f"rank {first}{more}: " if self.size > 1 else ""
        raise UserError("; ".join(filter(None, [f"{where}{problems[first]}", hint()])))

    def store(self) -> Any | None:
        """The key-value store of the rendezvous, or None in a world of one."""
        return None if self.size == 1 else dist.distributed_c10d._get_default_store()

    def timeout(self) -> float | None:
        """Seconds after which a collective of the default group gives up, or None if that cannot be known."""
        try:
            group = dist.distributed_c10d._get_default_group()
            return group._get_backend(self.device).options._timeout.total_seconds()
        except (AttributeError, RuntimeError, ValueError):
            return None

    def gather_int64(self, value: int) -> list[int]:
        """Every rank's 64-bit integer, in rank order, on every rank."""
        if self.size == 1:
            return [int(value)]
        mine = torch.tensor([value], dtype=torch.int64, device=self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine)
        self.traffic.count(8 * self.size)
        return torch.cat(everyone).tolist()

    def all_same(self, digest: int) -> bool:
        """Whether every rank holds the same 63-bit integer: one reduction of 16 bytes, however many ranks there are."""
        if self.size == 1:
            return True
        ends_2 = torch.tensor([digest, -digest], dtype=torch.int64, device=self.device)
        dist.all_reduce(ends_2, dist.ReduceOp.MAX)
        self.traffic.count(16)
        highest, lowest = ends_2.tolist()
        return highest == -lowest

    def gather_on_zero(self, value: Any) -> list[Any]:
        """Every rank's picklable `value`, in rank order, on rank zero; [] elsewhere. For error reports."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.gather_object(value, everyone if self.is_zero else None)
        return everyone if self.is_zero else []

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable `value`, in rank order, on every rank. For error reports, not for the fast path."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def require_same(self, facts: dict[str, Any]) -> None:
        """Stop every rank when one started with other facts than rank zero.

        Costs one 16-byte reduction when all is well; the facts themselves travel only to write the message.
        Raises RanksDisagree on all ranks, naming the first differing fact and the ranks that hold it.
        """
        if self.all_same(digest64(repr(sorted(facts.items())))):
            return
        everyone = self.gather_on_zero({name: repr(value) for name, value in facts.items()})
        raise RanksDisagree(self.run_on_rank_zero(lambda: _other_facts(everyone)))

    def require_same_rows(self, first_block: int, digest_S: np.ndarray) -> None:
        """Stop every rank, before the next batch, when one holds other rows of the table.

        digest_S: int64 digest of each row from first_block on. One 16-byte reduction when all is well.
        """
        digest_S = np.ascontiguousarray(digest_S, dtype=np.int64)
        if self.all_same(digest64(digest_S.tobytes())):
            return
        everyone = self.gather_on_zero(digest_S)
        raise RanksDisagree(self.run_on_rank_zero(lambda: _other_rows(everyone, first_block)))


def _other_facts(everyone: list[dict[str, str]]) -> str:
    """The sentence that names the first differing fact and the ranks that hold it. everyone: facts by rank."""
    reference = everyone[0]
    for name in sorted(set().union(*everyone)):
        other = [r for r, theirs in enumerate(everyone) if theirs.get(name) != reference.get(name)]
        if other:
            theirs = everyone[other[0]].get(name)
            return (
                f"{_ranks(other)} started with another {name} than rank 0 ({_short(theirs)} against "
                f"{_short(reference.get(name))}); start every rank with the same options, data and seed"
            )
    return "ranks started with different facts that print alike; start every rank the same way"


def _other_rows(everyone: list[np.ndarray], first_block: int) -> str:
    """The sentence that names the ranks whose rows differ, and from which block on. everyone: digest_S by rank."""
    blocks = {}
    for rank, theirs_S in enumerate(everyone):
        rows = min(len(theirs_S), len(everyone[0]))
        differs_S = theirs_S[:rows] != everyone[0][:rows]
        if differs_S.any() or len(theirs_S) != len(everyone[0]):
            blocks[rank] = first_block + (int(np.argmax(differs_S)) if differs_S.any() else rows)
    return (
        f"{_ranks(sorted(blocks))}: the mixture differs from that of rank 0 from block {min(blocks.values())} on; "
        "the run stops before a batch is drawn from it: resume from the last checkpoint, and check the memory of "
        "those hosts"
    )


def digest64(data: bytes | str) -> int:
    """A 63-bit digest of bytes or text, the same on every platform."""
    if isinstance(data, str):
        data = data.encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _short(value: Any, limit: int = 120) -> str:
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _num_bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_num_bytes(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_num_bytes(v) for v in value)
    return 8
