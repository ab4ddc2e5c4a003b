"""What a policy may know of its run besides its options, the laws and the counts.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.errors import UserError
from ado_megatron.policy.state import normalised


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyContext:
    """The facts of a run that do not change while it goes on. Only the prior is needed; None is "not known".

    Raises UserError for a prior or a target that is no distribution.
    """

    prior_K: np.ndarray  # μ, normalised here
    natural_K: np.ndarray | None = None  # shares of the data
    target_K: np.ndarray | None = None  # τ, normalised here; None: what the option `target` says
    names_K: tuple[str, ...] | None = None
    block_size: int = 1  # samples of a block
    num_blocks: int | None = None  # blocks of the whole run
    cap_K: np.ndarray | None = None  # the most samples of each domain that the run may draw; inf: no cap
    length_K: np.ndarray | None = None  # samples of one epoch
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior_K", normalised(self.prior_K))
        if self.target_K is not None:
            object.__setattr__(self, "target_K", normalised(self.target_K, "target"))
        for name in ("natural_K", "target_K", "names_K", "cap_K", "length_K"):
            value = getattr(self, name)
            if value is not None and len(value) != self.num_domains:
                raise UserError(f"{name} has {len(value)} entries for {self.num_domains} domains; give one for each")

    @property
    def num_domains(self) -> int:
        """K."""
        return len(self.prior_K)

    @property
    def known_target_K(self) -> np.ndarray:
        """τ, or the prior where no target was given."""
        return self.prior_K if self.target_K is None else self.target_K

    def samples_left(self, block: int, drawn: float) -> float:
        """Samples from `block` to the end of the run; as many as were `drawn` where the end is not known."""
        return drawn if self.num_blocks is None else float(max(self.num_blocks - block, 0)) * self.block_size


def as_context(context: PolicyContext | ArrayLike) -> PolicyContext:
    """The context itself, or that of a prior of which nothing else is known."""
    return context if isinstance(context, PolicyContext) else PolicyContext(np.asarray(context, np.float64))
