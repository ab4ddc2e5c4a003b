"""One table a node: its ranks read the rows in the memory of the first of them.

Every rank still computes the digest of the rows that it was sent, so a difference is found as with tables of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ado_megatron.mixer.world import World
from ado_megatron.stream.schedule import Schedule


def share_table(world: World, schedule: Schedule, restore: Callable[[], None]) -> None:
    """Give every rank a table, `restore` what it holds, and go on when all have done so. Collective, at the start.

    Where the memory of another process cannot be reached (another user, container or system), a rank has its own.
    """
    nodes = world.gather(node_name())
    first, address = nodes.index(nodes[world.rank]), None  # of this node
    if first == world.rank:
        restore()
        address = schedule.table.address
    address = world.gather(address)[first]
    if first != world.rank:
        schedule.share_table(address)
        restore()


def node_name() -> str:
    """What processes have in common that can reach each other's memory: the running system and its process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino} {os.getuid()}"
    except OSError:
        return f"process {os.getpid()} alone"
