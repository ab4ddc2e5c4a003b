"""What the run's data loader holds in flight, and the shared memory that it needs on a node."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

from ado_megatron.errors import UserError
from ado_megatron.mixer.world import World, digest64
from ado_megatron.stream.schedule import lead_blocks

SHARED_MEMORY = "/dev/shm"  # where torch puts what a worker hands over


@dataclasses.dataclass(frozen=True)
class LoaderSettings:
    """The data loader of every rank.

    num_workers, prefetch_factor: processes, and micro-batches that each keeps ready (of 0 workers: nothing).
    micro_batch: samples of a micro-batch. dp: data-parallel ranks. dp_rank: this rank's place among them, for the
    audit. sample_bytes: what one sample takes when a worker hands it over (0: not known, or this rank reads none).
    loaders: how many of them the rank has: a framework's for evaluation fill up at the start, too.
    """

    num_workers: int = 0
    prefetch_factor: int | None = 2
    micro_batch: int = 1
    dp: int = 1
    dp_rank: int | None = None
    sample_bytes: int = 0
    loaders: int = 1

    def lookahead(self, block_size: int) -> int:
        """Blocks to keep planned ahead of the one being consumed, so that no worker has to wait.

        One more than the workers hold: under a batch ramp a step may straddle two blocks.
        """
        prefetch = self.prefetch_factor or 0
        return 1 + lead_blocks(self.num_workers, prefetch, self.micro_batch, self.dp, block_size)

    def shared_bytes(self) -> int:
        """Bytes of shared memory that the loaders of this rank may hold at once: what is ready, and one micro-batch a
        worker being made and one being read."""
        batches = self.num_workers * ((self.prefetch_factor or 0) + 1) + 1 if self.num_workers else 0
        return self.loaders * batches * self.micro_batch * self.sample_bytes


def check_shared_memory(loader: LoaderSettings, world: World, directory: str = SHARED_MEMORY) -> None:
    """UserError on every rank, with the numbers, if the loaders' worker processes need more shared memory than a node
    has free. Collective: two 8-byte gathers and a sum. The mixture's own table needs none of it (SharedTable)."""
    needs_R = world.gather_int64(loader.shared_bytes())
    nodes_R = world.gather_int64(_memory_of(directory))
    here = [need for need, node in zip(needs_R, nodes_R, strict=True) if node == nodes_R[world.rank] and need]
    workers = max(loader.loaders, 1) * loader.num_workers  # a rank that reads none speaks for those that do
    world.require_success(lambda: _check_room(sum(here), len(here), workers, directory))


def _memory_of(directory: str) -> int:
    """A number that is the same for ranks that share this memory: of one machine, and not of different containers."""
    try:
        return digest64(f"{Path('/proc/sys/kernel/random/boot_id').read_text()} {os.stat(directory).st_dev}")
    except OSError:
        return digest64(socket.gethostname())


def _check_room(need: int, ranks: int, workers: int, directory: str) -> None:
    if not need or not os.path.isdir(directory):
        return
    stat = os.statvfs(directory)
    free = stat.f_bavail * stat.f_frsize
    if need > free:
        raise UserError(
            f"the loader workers of this node may hold {need / 1e6:,.1f} MB in {directory} ({ranks} ranks that read × "
            f"{workers} workers), but {free / 1e6:,.1f} MB are free there; enlarge it (docker: --shm-size, "
            f"else: mount -o remount,size=… {directory}), or use fewer workers or a smaller micro-batch"
        )
