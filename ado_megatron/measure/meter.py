"""Per-domain loss sums, measured on the device as a by-product of training.

Legend: T rows (training steps of the running interval), K domains, C datasets (prefixes), B samples of a micro-batch,
L tokens of a sample, N entries added at once.

Nothing here waits for the device: no `.item()`, no copy to the host, no collective. The sums of an interval leave the
device once, when the mixer takes them.
"""

from __future__ import annotations

import numpy as np
import torch

from ado_megatron.stream.sample_key import KEY_MASK

# Between two reductions. Rank zero books what it is sent before the next step: small parts delay none of them much.
MOST_STEPS = 256
MOST_BYTES = 4 << 20


def meter_rows(steps: int, num_domains: int) -> int:
    """Rows of a meter that is read every so many steps, or earlier where that would be much to book at once."""
    return max(1, min(steps, MOST_STEPS, MOST_BYTES // (16 * num_domains)))


class DomainMeter:
    """Loss sums and token counts of each domain for each step of an interval: `sums_TxKx2`, float64.

    domain_of_C: domain of every dataset (int64). rows: steps that fit between two calls of `take`. contributes: whether
    this rank's losses belong in the world's sum; on other ranks `add` does nothing, so callers need not ask.
    evaluation: losses count without gradients instead of with them.
    """

    def __init__(
        self, rows: int, domain_of_C: np.ndarray, num_domains: int, *, contributes: bool,
        device: torch.device | str = "cpu",
        evaluation: bool = False,
    ):  # fmt: skip
        self.contributes = contributes
        self.rows = rows
        self._gradients = not evaluation
        self._domain_of_C = torch.as_tensor(np.asarray(domain_of_C), dtype=torch.int64, device=device)
        self._sums_TxKx2 = torch.zeros(rows, num_domains, 2, dtype=torch.float64, device=device)
        self._row = 0

    @classmethod
    def of_steps(
        cls, steps: int, domain_of_C: np.ndarray, contributes: bool, device: torch.device
    ) -> DomainMeter:
        """A meter for the steps between two reductions, `steps` apart, or as many as its memory allows."""
        num_domains = int(domain_of_C.max()) + 1
        return cls(meter_rows(steps + 1, num_domains), domain_of_C, num_domains, contributes=contributes, device=device)

    def begin(self, row: int) -> None:
        """Start an attempt of the step in `row`. A step that is replayed begins again and so counts once."""
        if not 0 <= row < self.rows:
            raise IndexError(f"the meter holds {self.rows} steps between two reductions; step {row} does not fit")
        self._row = row
        self._sums_TxKx2[row].zero_()

    def discard(self) -> None:
        """Forget the running step: its update was skipped (overflow, or skipped on purpose)."""
        self._sums_TxKx2[self._row].zero_()

    @torch.no_grad()
    def _accumulate(self, loss_BxL: torch.Tensor, mask_BxL: torch.Tensor, key: torch.Tensor) -> None:
        domain_N = self._domain_of_C[(key.reshape(-1) & KEY_MASK).to(self._domain_of_C.device)]
        # A masked token may hold anything, NaN included: select, do not multiply.
        mask_BxL = mask_BxL.to(loss_BxL.dtype).reshape(loss_BxL.shape)
        masked_BxL = torch.where(mask_BxL != 0, loss_BxL * mask_BxL, 0)
        if key.dim() == 1:  # one domain per sample: sum its tokens first
            value_Nx2 = torch.stack([masked_BxL.sum(1, dtype=torch.float64), mask_BxL.sum(1, dtype=torch.float64)], 1)
        else:
            value_Nx2 = torch.stack([masked_BxL.reshape(-1), mask_BxL.reshape(-1)], 1).double()
        row_Kx2 = self._sums_TxKx2[self._row]
        # Both add in a fixed order: index_add_ is sequential on a CPU, accumulating index_put_ sorts on a GPU, where
        # index_add_ would use atomics in whatever order they arrive.
        if row_Kx2.is_cuda:
            row_Kx2.index_put_((domain_N,), value_Nx2, accumulate=True)
        else:
            row_Kx2.index_add_(0, domain_N, value_Nx2)

    def add(self, loss_BxL: torch.Tensor, mask_BxL: torch.Tensor, key: torch.Tensor) -> None:
        """Add a micro-batch: per-token losses (nats, unscaled), their mask, and the samples' keys.

        key: `ado_key` of each sample, shape [B]; or of each token, shape [B, L], where a row packs several documents of
        different domains. Under context parallelism each rank adds its own shard of the tokens. Does nothing without
        gradients (evaluation; the first pass of a recomputed activation), so every token counts once; a meter of the
        evaluation does nothing with them.
        """
        if self.contributes and torch.is_grad_enabled() == self._gradients:
            self._accumulate(loss_BxL.detach(), mask_BxL, key)

    def take(self, rows: int) -> torch.Tensor:
        """A copy of the first `rows` rows, `[rows, K, 2]` (loss sum in nats, tokens); all start again from zero."""
        taken = self._sums_TxKx2[:rows].clone()
        self._sums_TxKx2.zero_()
        self._row = 0
        return taken
