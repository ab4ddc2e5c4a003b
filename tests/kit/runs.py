"""A made-up run's metrics.jsonl with known laws, so that the report is tested without training."""
import json

import numpy as np

NAMES = ["python", "cpp", "docstrings", "sympy_tests", "decimal", "unicode", "arithmetic", "licences"]
PRIOR = np.array([0.51, 0.18, 0.16, 0.08, 0.03, 0.014, 0.012, 0.007])


def law_parameters(num):
    draw = np.random.default_rng(5)
    return np.log(draw.uniform(8, 25, num)), np.log(draw.uniform(0.9, 2.2, num)), draw.uniform(0.25, 0.5, num)


def make_run(folder, *, names=NAMES, prior=PRIOR, steps=600, interval=5, batch=32, seed=0, adaptive=True, config=None,
             planned=None, caps=None):  # fmt: skip
    """Writes folder/ado/metrics.jsonl and returns its records."""
    draw, num = np.random.default_rng(seed), len(names)
    log_beta, log_epsilon, alpha = law_parameters(num)
    lengths = np.maximum(20, (prior * 30000).astype(int))
    header = {"type": "run", "version": 1, "domains": list(names), "prior_K": list(prior), "columns": list(names),
              "lengths_C": lengths.tolist(), "domain_of_C": list(range(num)), "block_size": batch,
              "num_blocks": planned or steps, "caps_C": caps,
              "config": {"policy": "ado" if adaptive else "static", **(config or {})}}  # fmt: skip
    records, n, weights, laws = [header], np.zeros(num), np.array(prior, float), False
    for step in range(interval, steps + 1, interval):
        counts = draw.multinomial(batch * interval, weights)
        n = n + counts
        with np.errstate(divide="ignore"):
            clean = np.exp(log_epsilon) + np.exp(log_beta - alpha * np.log(np.maximum(n, 1)))
        loss = clean * np.exp(0.02 * draw.standard_normal(num))
        records.append({"type": "step", "step": step, "consumed_samples": step * batch, "counts_K": counts.tolist(),
                        "tokens_K": (counts * 64).tolist(), "weights_K": weights.tolist(),
                        "loss_K": [float(v) if c else None for v, c in zip(loss, counts, strict=True)],
                        "epochs_C": (n / lengths).tolist()})  # fmt: skip
        records.append({"type": "progress", "step": step, "loss": float((clean * counts).sum() / counts.sum()),
                        "lr": 2e-3, "grad_norm": 0.5, "samples_per_second": 140.0})  # fmt: skip
        if step % 150 == 0:
            records.append({"type": "validation", "step": step, "loss_K": (clean * 1.05).tolist()})
        if adaptive and step >= 150 and step % 50 == 0:
            laws = True
            rare = np.array(counts.tolist()) < 2
            records.append(fit_record(step, log_beta, log_epsilon, alpha, rare, weights))
        if laws:
            speed = alpha * np.exp(log_beta - (alpha + 1) * np.log(np.maximum(n, 1)))
            goal = prior * speed / (prior * speed).sum()
            weights = 0.93 * weights + 0.07 * np.maximum(goal, 0.01)
            weights = weights / weights.sum()
    path = folder / "ado" / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def fit_record(step, log_beta, log_epsilon, alpha, rare, credit):
    num = len(alpha)
    drift = 1 + 0.2 * np.exp(-step / 200)
    reasons = ["speed known to ±140 % only" if r else "" for r in rare]
    return {"type": "fit", "step": step, "applies_at_block": step + 5, "log_beta_K": log_beta.tolist(),
            "log_epsilon_K": log_epsilon.tolist(), "alpha_K": (alpha * drift).tolist(),
            "objective_K": [1e-4] * num, "ok_K": (~rare).tolist(), "reason_K": reasons,
            "points_K": [step // 10] * num, "rms_K": [0.02 * drift] * num,
            "stderr_Kx3": [[0.1, 0.05, 0.03]] * num, "speed_stderr_K": [0.1 * drift] * num,
            "seconds": 0.05, "wait_seconds": 0.0, "credit_K": credit.tolist()}  # fmt: skip


def steps_of(records):
    """The records of logging intervals."""
    return [record for record in records if record["type"] == "step"]


def write_records(folder, records):
    """Writes folder/ado/metrics.jsonl anew, a record a line."""
    (folder / "ado" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
