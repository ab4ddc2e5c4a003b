"""The receding horizon: the shares of what is left of a run that make the weighted loss at its end least.

Legend: K domains. Per domain: n own samples so far, U samples of one epoch, s transfer, w share of what is left.
R samples left, N′ = samples of all domains at the end.

    minimise   F(w) = Σ_k τ_k L_k(w_k) + κ Σ_k w_k log(w_k / μ_k)        over lower ≤ w ≤ upper, Σ w = 1
    L_k(w)   = ε + P (E(w) / E₀)^(−α),     E(w) = m(n + R w) + s N′,     E₀ = m(n) + s N,     P = L_k now − ε
    m(n)     = min(n, U) + U R* (1 − exp(−(n/U − 1)⁺ / R*))

L is written from the present excess P, not from β: so a law that was fitted while data were already repeated goes
through the present loss, and nothing overflows. m is the worth of repeated data (Muennighoff et al., arXiv 2305.16264,
equation 5; R* about 15); it is concave, and L convex and falling, so F is convex, and separable but for Σ w = 1.

The minimum is w_k(ν) = clip(φ_k⁻¹(ν), lower, upper) with the one price ν that makes the sum 1, where

    φ_k(w) = τ α P R m′(n + R w) / E₀ · (E / E₀)^(−α−1)  −  κ log(w / μ)

falls in w: the gain of a sample less the pull of the prior. `_price` finds ν by Newton steps inside a bracket, and
`_shares` the shares at a price in the same way, all domains at once. A bound on the total variation from an anchor a,
½ Σ |w − a| ≤ c, has a multiplier that is one price for those that rise and another for those that fall: where the
bound binds, Σ (w − a)⁺ = c and Σ (a − w)⁺ = c are solved one after the other, exactly.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_TINY = 1e-17  # the least share under a pull of the prior: log 0 has no price
_MOST = 200  # steps of either search; a bisection alone needs 60


def worth(samples_K: np.ndarray, length_K: np.ndarray, reuse: float) -> tuple[np.ndarray, np.ndarray]:
    """(m, m′): samples by their worth, where those after the first epoch count less, and the worth of one more.

    length_K: U, samples of one epoch; inf: never repeated. reuse: R*; 0: repeated samples count like new ones.
    """
    if reuse == 0:
        return samples_K, np.ones_like(samples_K)
    with np.errstate(invalid="ignore", over="ignore"):
        passes_K = np.where(np.isinf(length_K), 0.0, np.maximum(samples_K / length_K - 1.0, 0.0))
        more_K = np.where(passes_K > 0, length_K * reuse * -np.expm1(-passes_K / reuse), 0.0)
    return np.minimum(samples_K, length_K) + more_K, np.exp(-passes_K / reuse)


@dataclasses.dataclass(frozen=True, eq=False)
class Horizon:
    """The problem above. A domain with excess_K 0 has no say but the prior's: its loss is not known, or does not count,
    or does not follow its own samples (s = ∞)."""

    excess_K: np.ndarray  # τ P, nats
    alpha_K: np.ndarray
    samples_K: np.ndarray  # n, float64, positive
    shared_K: np.ndarray  # s N′, finite
    present_K: np.ndarray  # E₀, positive
    length_K: np.ndarray  # U
    prior_K: np.ndarray  # μ
    left: float  # R, positive
    kl: float = 0.0  # κ
    reuse: float = 0.0  # R*; 0: repeated samples count like new ones

    def take(self, index: np.ndarray) -> Horizon:
        """The problem of some of the domains; index: numbers or a mask."""
        fields = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        return dataclasses.replace(
            self, **{name: value[index] for name, value in fields.items() if name.endswith("_K")}
        )

    def growth(self, w_K: np.ndarray) -> np.ndarray:
        """E / E₀ at the end of the run."""
        return (worth(self.samples_K + self.left * w_K, self.length_K, self.reuse)[0] + self.shared_K) / self.present_K

    def excess(self, w_K: np.ndarray) -> np.ndarray:
        """τ (L − ε) of each domain at the end of the run, nats."""
        return self.excess_K * self.growth(w_K) ** -self.alpha_K

    def objective(self, w_K: np.ndarray) -> float:
        """F less Σ τ ε."""
        w_K = np.asarray(w_K, np.float64)
        some_K = (w_K > 0) & (self.kl > 0)
        pull = np.sum(w_K[some_K] * np.log(w_K[some_K] / self.prior_K[some_K]))
        return float(self.excess(w_K).sum() + self.kl * pull)

    def price(self, w_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(φ, φ′) at w_K > 0 (or ≥ 0 where κ = 0). φ′ leaves out the kink of m′ where an epoch ends."""
        n_K = self.samples_K + self.left * w_K
        m_K, slope_K = worth(n_K, self.length_K, self.reuse)
        growth_K = (m_K + self.shared_K) / self.present_K
        rate_K = self.left * slope_K / self.present_K  # dE/dw / E₀
        phi_K = self.excess_K * self.alpha_K * rate_K * growth_K ** (-self.alpha_K - 1.0)
        bend_K = (self.alpha_K + 1.0) * rate_K / growth_K
        if self.reuse > 0:
            with np.errstate(divide="ignore"):
                bend_K = bend_K + np.where(n_K > self.length_K, self.left / (self.length_K * self.reuse), 0.0)
        dphi_K = -phi_K * bend_K
        if self.kl > 0:
            phi_K = phi_K - self.kl * np.log(w_K / self.prior_K)
            dphi_K = dphi_K - self.kl / w_K
        return phi_K, dphi_K


def best_shares(
    problem: Horizon, lower_K: np.ndarray, upper_K: np.ndarray, anchor_K: np.ndarray, change: float = 1.0
) -> np.ndarray:
    """The minimiser of F within the bounds and ½ Σ |w − anchor| ≤ change. Sum 1 to the last bits.

    lower ≤ anchor ≤ upper, Σ anchor = 1. Raises ValueError when that does not hold.
    """
    if (lower_K > anchor_K).any() or (anchor_K > upper_K).any() or abs(anchor_K.sum() - 1.0) > 1e-9:
        raise ValueError("the anchor must lie within the bounds and sum to 1")
    w_K = _price(problem, lower_K, upper_K, 1.0, anchor_K)
    if 0.5 * np.abs(w_K - anchor_K).sum() > change:
        up_K = _price(problem, anchor_K, upper_K, 1.0 + change, anchor_K)
        down_K = _price(problem, lower_K, anchor_K, 1.0 - change, anchor_K)
        w_K = up_K + down_K - anchor_K
    return _sum_to_one(w_K, lower_K, upper_K)


def _price(problem: Horizon, lower_K, upper_K, total: float, start_K) -> np.ndarray:
    """The shares w_K(ν) with sum `total`. Newton steps in ν inside a bracket, halved where a step does not help.

    Where several shares answer one price (a domain that gains nothing), the sum jumps there; the two sides of the jump
    are then both best, and so is the mixture of them that has the sum.
    """
    free_K = upper_K > lower_K
    w_K = np.array(lower_K, np.float64)
    total -= w_K[~free_K].sum()
    if not free_K.any():
        return w_K
    part, floor_K = problem.take(free_K), lower_K[free_K]
    low_K, high_K = (np.maximum(floor_K, _TINY) if problem.kl > 0 else floor_K), upper_K[free_K]
    at_low_K, at_high_K = part.price(low_K)[0], part.price(high_K)[0]
    dear, cheap = float(at_low_K.max()), float(at_high_K.min())
    few_K, many_K = low_K, high_K  # the shares at the two prices
    x_K = np.clip(start_K[free_K], low_K, high_K)
    price = float(np.clip(x_K @ part.price(x_K)[0] / max(x_K.sum(), _TINY), cheap, dear))
    for _ in range(_MOST):
        x_K, slope = _shares(part, price, few_K, many_K, x_K, at_low_K, at_high_K)
        excess = x_K.sum() - total
        if abs(excess) <= 1e-13:
            w_K[free_K] = x_K
            return w_K
        if excess > 0:
            cheap, many_K = price, x_K
        else:
            dear, few_K = price, x_K
        if dear - cheap <= 4e-16 * max(abs(dear), abs(cheap)):
            break
        step = price - excess / slope if slope < 0 else cheap
        price = step if cheap < step < dear else 0.5 * (cheap + dear)
    few, many = few_K.sum(), many_K.sum()
    part_of = (total - few) / (many - few) if many > few else 0.0
    w_K[free_K] = few_K + (many_K - few_K) * float(np.clip(part_of, 0.0, 1.0))
    return w_K


def _shares(part: Horizon, price: float, few_K, many_K, start_K, at_low_K, at_high_K) -> tuple[np.ndarray, float]:
    """(clip(φ⁻¹(price), few, many), derivative of their sum): Newton steps inside a bracket, all domains at once.

    few_K ≤ the answer ≤ many_K. at_low_K, at_high_K: φ at the bounds.
    """
    x_K = np.where(at_low_K <= price, few_K, np.where(at_high_K >= price, many_K, np.clip(start_K, few_K, many_K)))
    inside = np.flatnonzero((at_low_K > price) & (at_high_K < price))
    slope_K = np.full(len(x_K), -np.inf)
    todo, work = inside, part.take(inside)
    low, high, x = few_K[inside].copy(), many_K[inside].copy(), x_K[inside]
    for _ in range(_MOST):
        if not len(todo):
            break
        phi, dphi = work.price(x)
        slope_K[todo] = dphi
        more = phi > price  # the share at this price is greater
        low, high = np.where(more, x, low), np.where(more, high, x)
        with np.errstate(divide="ignore", invalid="ignore"):
            new = x - (phi - price) / dphi
        new = np.where((new >= low) & (new <= high), new, _middle(low, high))
        x_K[todo] = new
        going = np.abs(new - x) > 2e-16 + 1e-15 * x
        if going.all():
            x = new
        else:
            todo, work = todo[going], work.take(going)
            low, high, x = low[going], high[going], new[going]
    with np.errstate(divide="ignore", over="ignore"):
        return x_K, float((1.0 / slope_K).sum())


def _middle(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Geometric where the two are far apart, since shares differ by orders of magnitude."""
    return np.where((low > 0) & (high > 4 * low), np.sqrt(low * high), 0.5 * (low + high))


def _sum_to_one(w_K: np.ndarray, lower_K: np.ndarray, upper_K: np.ndarray) -> np.ndarray:
    """Spreads the last rounding error of the sum over the shares that have room for it."""
    w_K = np.clip(w_K, lower_K, upper_K)
    rest = 1.0 - w_K.sum()
    room_K = upper_K - w_K if rest > 0 else w_K - lower_K
    if rest != 0 and room_K.sum() > 0:
        w_K = np.clip(w_K + rest * room_K / room_K.sum(), lower_K, upper_K)
    return w_K


def predicted_gain(problem: Horizon, from_K: np.ndarray, to_K: np.ndarray) -> float:
    """Σ τ L at the end of the run under `from_K` less that under `to_K`, nats."""
    return float((problem.excess(from_K) - problem.excess(to_K)).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Doubt:
    """What is not known of the laws, for the error of a predicted gain."""

    covariance_Kx3x3: np.ndarray  # of (log β, log ε, α) at this s
    log_n_K: np.ndarray  # log of the effective samples now, as the law counts them
    transfer_K: np.ndarray  # s
    transfer_error_K: np.ndarray  # standard error of log s
    total: float  # N, samples of all domains now
    model_K: np.ndarray  # standard error of τ dL/dlog E that no fit shows, nats


def gain_error(problem: Horizon, doubt: Doubt, from_K: np.ndarray, to_K: np.ndarray) -> float:
    """Standard error of `predicted_gain`, nats (delta method; domains independent of one another).

    With g = E/E₀ and G = τ P (g_from^(−α) − g_to^(−α)), where P = β n₀^(−α), n₀ the effective samples now:
      ∂G/∂log β = G,   ∂G/∂α = −Σ± τ P g^(−α) (log g + log n₀).
    s changes what the samples to come are worth, while P and α are what was seen:
      ∂G/∂log s = −α Σ± τ P g^(−α) s (N′/E − N/E₀).
    model: an error of dL/dlog E of its own times log(g_from / g_to).
    """
    growths = [problem.growth(from_K), problem.growth(to_K)]
    excesses = [problem.excess_K * growth_K**-problem.alpha_K for growth_K in growths]
    by_beta_K = excesses[0] - excesses[1]
    by_alpha_K = -sum(
        sign * excess_K * (np.log(growth_K) + doubt.log_n_K)
        for sign, excess_K, growth_K in zip((1, -1), excesses, growths, strict=True)
    )
    gradient_Kx3 = np.stack([by_beta_K, np.zeros_like(by_beta_K), by_alpha_K], -1)
    variance_K = np.einsum("ki,kij,kj->k", gradient_Kx3, doubt.covariance_Kx3x3, gradient_Kx3)
    now_K = doubt.transfer_K * doubt.total / problem.present_K
    by_transfer_K = -problem.alpha_K * sum(
        sign * excess_K * (problem.shared_K / (growth_K * problem.present_K) - now_K)
        for sign, excess_K, growth_K in zip((1, -1), excesses, growths, strict=True)
    )
    model_K = doubt.model_K * np.log(growths[0] / growths[1])
    return float(np.sqrt(np.maximum(variance_K, 0).sum() + np.sum((by_transfer_K * doubt.transfer_error_K) ** 2)
                         + np.sum(model_K**2)))
