"""The drawing of `ado-megatron replay`: one column a variant; weights above, losses and the last laws below.

Legend: K domains, T steps.
"""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from ado_megatron.scaling_law.laws import Laws  # noqa: E402


def draw(path: str, trace, results: dict) -> None:
    """Writes the image. results: label → Replay. The twelve domains with the largest weights have a legend."""
    size = (5.5 * len(results), 7)
    figure, axes = plt.subplots(2, len(results), figsize=size, squeeze=False, sharex=True, sharey="row")
    own_TxK = np.maximum(np.cumsum(trace.counts_TxK, 0), 1)
    for column, (label, result) in enumerate(results.items()):
        top, bottom = axes[:, column]
        shown_K = np.argsort(-result.weights_TxK.max(0))
        colours = plt.get_cmap("tab20")
        for place, k in enumerate(shown_K):
            name = trace.names_K[k] if place < 12 else None
            top.plot(result.weights_TxK[:, k], color=colours(k % 20), lw=1, label=name)
            bottom.plot(np.where(trace.counts_TxK[:, k] > 0, trace.loss_TxK[:, k], np.nan), color=colours(k % 20),
                        lw=0.4, alpha=0.5)
            if result.fits_R and result.fits_R[-1].ok_K[k]:
                n_T = own_TxK[:, k] if result.own_n else own_TxK.sum(1)
                law = Laws.given(result.laws_RxKx3[-1, k : k + 1])
                bottom.plot(law.loss(n_T[:, None])[:, 0], color=colours(k % 20), lw=1)
        top.set_title(label, fontsize=9)
        top.legend(fontsize=6)
        bottom.set_xlabel("step")
        low, high = np.nanquantile(trace.loss_TxK, [0.001, 0.999])
        bottom.set_ylim(0.9 * low, 1.05 * high)
    axes[0, 0].set_ylabel("weight")
    axes[1, 0].set_ylabel("loss (points) and last law (line), nats")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
