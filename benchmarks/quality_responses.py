"""Responses for quality.py: those of files, and fits to raw tables of other people's runs.

The tables (`pile_mixtures.npz`: runs of Ye et al., arXiv 2403.16952; `pile17_final.npz`: runs of RegMix, arXiv
2407.01492) are read from a folder that is named on the command line.

Legend: K domains, M losses (M = K), R rows of a table, n samples so far in steps × share, N their sum, w shares so far.

    power        L_m = ε_m + β_m (Σ_k γ_mk n_k)^(−α_m)             (EpiSelect, arXiv 2608.11746)
    exponential  L_m = ε_m + β_m N^(−α_m) exp(Σ_k t_mk w_k)        (arXiv 2403.16952, equation 6, with a law in N)
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from ado_megatron.simulate import PowerResponse, read_response

# Effective shares of the Pile in per cent (Gao et al., arXiv 2101.00027, table 1), by group of arXiv 2403.16952.
GROUPS = {
    "academic": {"ArXiv": 8.96, "PubMed_Abstracts": 3.07, "PhilPapers": 0.38, "NIH_ExPorter": 0.30, "FreeLaw": 6.12,
                 "USPTO_Backgrounds": 3.65, "PubMed_Central": 14.40},
    "prose": {"PG19": 2.17, "Books3": 12.07, "BookCorpus2": 0.75},
    "dialogue": {"Ubuntu_IRC": 0.88, "OpenSubtitles": 1.55, "EuroParl": 0.73, "Enron_Emails": 0.14, "HackerNews": 0.62,
                 "YoutubeSubtitles": 0.60},
    "symbolic": {"DM_Mathematics": 1.24, "Github": 7.59},
    "internet": {"Pile-CC": 18.11, "OpenWebText2": 10.01, "StackExchange": 5.13, "Wikipedia_en": 1.53},
}  # fmt: skip
PILE17 = {"arxiv": 8.96, "freelaw": 6.12, "pubmed_central": 14.40, "wikipedia_en": 1.53, "dm_mathematics": 1.24,
          "github": 7.59, "stackexchange": 5.13, "gutenberg_pg_19": 2.17, "pile_cc": 18.11, "ubuntu_irc": 0.88,
          "hackernews": 0.62, "pubmed_abstracts": 3.07, "uspto_backgrounds": 3.65}  # fmt: skip
STEPS = 30_000  # of a run, in the unit of all responses


@dataclasses.dataclass(frozen=True, eq=False)
class ExponentialResponse:
    """The exponential form. unit: as of PowerResponse."""

    log_beta_M: np.ndarray
    log_epsilon_M: np.ndarray
    alpha_M: np.ndarray
    gamma_MxK: np.ndarray  # t
    unit: float = 1.0

    def __call__(self, n_K) -> np.ndarray:
        """loss_M in nats after n_K samples of each domain."""
        n_K = np.asarray(n_K, np.float64) / self.unit
        total = n_K.sum()
        power_M = self.log_beta_M - self.alpha_M * np.log(total) + self.gamma_MxK @ (n_K / total)
        return np.exp(self.log_epsilon_M) + np.exp(power_M)


FORMS = {"power": PowerResponse, "exponential": ExponentialResponse}


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A response with the natural shares of its domains and the residual of its fit (RMS of log loss; NaN: given)."""

    name: str
    response: PowerResponse | ExponentialResponse
    natural_K: np.ndarray
    rms: float


def sources(folder: Path, cache: Path, pattern: str = "") -> dict[str, Source]:
    """Responses by name, those that `pattern` finds; fits from the cache where they were made before."""
    files = {path.stem: read_response(path) for path in sorted(folder.glob("response_*.npz"))}
    natural_K = next(iter(files.values())).natural_K
    pile_K = np.array(list(PILE17.values())) / sum(PILE17.values())
    fits = {
        f"{form}_{size}_{which}": (form, natural_K, lambda s=size, w=which: _five(folder, s, w))
        for size in ("70M", "160M", "305M") for which in ("all", "present") for form in FORMS
    }  # fmt: skip
    fits |= {f"power_{size}_pile13": ("power", pile_K, lambda s=size: _thirteen(folder, s)) for size in ("1M", "60M")}
    found = {name: Source(name, file.response, file.natural_K, float("nan")) for name, file in files.items()}
    for name, made in fits.items():
        if re.search(pattern, name):
            found[name] = _cached(cache, name, *made)
    return {name: source for name, source in found.items() if re.search(pattern, name)}


def _cached(cache: Path, name: str, form: str, natural_K: np.ndarray, table) -> Source:
    path = cache / f"{name}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        n_RxK, loss_RxM = table()
        fits = [fit(form, n_RxK, loss_R, m) for m, loss_R in enumerate(loss_RxM.T)]
        columns = [np.array(column) for column in zip(*fits, strict=True)]
        np.savez(path, **dict(zip(("b", "e", "a", "g", "rms"), columns, strict=True)))
    with np.load(path) as npz:
        response = FORMS[form](npz["b"], npz["e"], npz["a"], npz["g"][:, : len(natural_K)])
        return Source(name, response, natural_K, float(npz["rms"].mean()))


def _five(folder: Path, size: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """n_RxK in steps × share and group losses loss_RxM of the runs over five groups. which: `present` leaves out the
    runs in which a group has no share."""
    with np.load(folder / "pile_mixtures.npz") as npz:
        parts = (f"{size}_w", f"{size}_step", f"{size}_loss", "doms")
        w_RxK, step_R, loss, names = (npz[f"5Mix_{part}"] for part in parts)
    column = {name: n for n, name in enumerate(names.tolist())}
    losses = [
        np.average(loss[:, [column[name] for name in group]], axis=1, weights=list(group.values()))
        for group in GROUPS.values()
    ]
    keep = (w_RxK > 0).all(1) if which == "present" else np.ones(len(w_RxK), bool)
    return (w_RxK * step_R[:, None])[keep], np.stack(losses, 1)[keep]


def _thirteen(folder: Path, size: str) -> tuple[np.ndarray, np.ndarray]:
    """The runs over 17 domains of the Pile, those with a loss of their own first. All have one length: it counts as
    STEPS, and the exponent is that of the shares."""
    with np.load(folder / "pile17_final.npz") as npz:
        w_RxK, loss_RxM = npz[f"{size}_weights"], npz[f"{size}_loss"]
        train, valid = npz["train_domains"].tolist(), npz["valid_domains"].tolist()
    order = [train.index(name) for name in PILE17] + [k for k, name in enumerate(train) if name not in PILE17]
    return w_RxK[:, order] * STEPS, loss_RxM[:, [valid.index(name) for name in PILE17]]


def fit(form: str, n_RxK: np.ndarray, loss_R: np.ndarray, own: int) -> tuple[float, float, float, np.ndarray, float]:
    """(log β, log ε, α, γ_K, RMS) of one loss: least squares of log loss with a soft L1 cost from three starts.

    own: the domain of this loss, whose γ is 1 in the power form.
    """
    num, low = n_RxK.shape[1], loss_R.min()
    total_R = n_RxK.sum(1)

    def predicted(x: np.ndarray) -> np.ndarray:
        b, e, a, g_K = x[0], x[1], x[2], x[3:]
        if form == "power":
            gamma_K = np.exp(g_K)
            gamma_K[own] = 1.0
            return np.exp(e) + np.exp(b - a * np.log(n_RxK @ gamma_K))
        return np.exp(e) + np.exp(b - a * np.log(total_R) + (n_RxK / total_R[:, None]) @ g_K)

    bounds = np.array([[-5.0, 12.0], [np.log(0.2 * low), np.log(0.95 * low)], [0.05, 1.0]])
    bounds = np.vstack([bounds, np.tile([-9.0, 1.5] if form == "power" else [-6.0, 6.0], (num, 1))])
    best = None
    for alpha in (0.2, 0.4, 0.7):
        level = np.log(max(np.median(loss_R) - 0.6 * low, 0.1))
        start = np.concatenate([[level + alpha * np.log(np.median(total_R)), np.log(0.6 * low), alpha],
                                np.full(num, -2.0 if form == "power" else 0.0)])  # fmt: skip
        start = np.clip(start, bounds[:, 0] + 1e-6, bounds[:, 1] - 1e-6)
        run = least_squares(lambda x: np.log(predicted(x)) - np.log(loss_R), start, bounds=tuple(bounds.T),
                            loss="soft_l1", f_scale=0.02, max_nfev=400)  # fmt: skip
        if best is None or run.cost < best.cost:
            best = run
    x = best.x
    gamma_K = x[3:].copy()
    if form == "power":
        gamma_K = np.exp(gamma_K)
        gamma_K[own] = 1.0
    rms = float(np.sqrt(np.mean((np.log(predicted(x)) - np.log(loss_R)) ** 2)))
    return x[0], x[1], x[2], gamma_K, rms
