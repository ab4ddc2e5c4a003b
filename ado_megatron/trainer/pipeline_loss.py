"""Where the last pipeline stage computes its loss.

Legend: B samples of a micro-batch, L tokens, K domains.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core import tensor_parallel


class PipelineLoss:
    """The pipeline's loss_fn: mean token loss for the engine, per-domain sums for the mixer, validation sums for the
    log.

    The engine's loss divides by B · L, masked tokens included: a constant, so the mean over micro-batches and ranks is
    the mean over the step, and Σ domains of loss sums / (samples · L) equals it. `on_train(loss_BxL, mask_BxL, key_B)`
    is called with gradients only; validation batches carry the domain itself in the key's place.
    """

    def __init__(self, num_domains: int) -> None:
        self.on_train: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None
        self._valid_Kx2 = torch.zeros(num_domains, 2, dtype=torch.float64)

    def __call__(
        self, logits_LxBxV: torch.Tensor, labels: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        target_BxL, mask_BxL, key_B = labels
        loss_LxB = tensor_parallel.vocab_parallel_cross_entropy(logits_LxBxV.float(), target_BxL.t().contiguous())
        loss_BxL = loss_LxB.t()
        if torch.is_grad_enabled():
            if self.on_train is not None:
                self.on_train(loss_BxL, mask_BxL, key_B)
        else:
            self._add_valid(loss_BxL, mask_BxL, key_B)
        return (loss_BxL * mask_BxL).sum() / mask_BxL.numel()

    def _add_valid(self, loss_BxL: torch.Tensor, mask_BxL: torch.Tensor, domain_B: torch.Tensor) -> None:
        sums_Bx2 = torch.stack([(loss_BxL * mask_BxL).sum(1), mask_BxL.sum(1)], 1).double()
        self._valid_Kx2 = self._valid_Kx2.to(sums_Bx2.device).index_add_(0, domain_B, sums_Bx2)

    def take_valid(self) -> torch.Tensor:
        """This rank's validation sums `[K, 2]` (loss in nats, tokens) since the last call."""
        taken = self._valid_Kx2.clone()
        self._valid_Kx2.zero_()
        return taken
