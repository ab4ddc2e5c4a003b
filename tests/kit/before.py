"""What the version before the package was divided into wings (0.1.0 at 2d0a8ec) computed: tests/data/before.

`python -m tests.test_unchanged_stream write` and `… tests.test_unchanged_run write` write the data anew, from the
functions whose results the tests compare with it. A change that is meant to alter results does so, and says which of
them; any other leaves the files alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data" / "before"


def digest(*arrays) -> str:
    """sha256 of the values and shapes, as int64 of one byte order."""
    whole = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array, dtype="<i8")
        whole.update(repr(array.shape).encode() + array.tobytes())
    return whole.hexdigest()


def stored(name: str):
    return json.loads((DATA / name).read_text())


def numbers(values) -> np.ndarray:
    """null is nan: what JSON has instead."""
    return np.array(values, dtype=np.float64)


@functools.cache
def arithmetic() -> str:
    """What this machine's floating point makes of a small network and a few functions, without the package."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = torch.nn.TransformerEncoderLayer(32, 4, 128, dropout=0.0, activation="gelu", batch_first=True)
        head, x = torch.nn.Linear(32, 200), torch.randn(8, 16, 32)
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    target = torch.arange(8 * 16) % 200
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(head(layer(x)).flatten(0, 1), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wave = np.exp(np.sin(np.arange(1.0, 2000.0)))
    parts = [*np.linalg.eigvalsh(np.outer(wave[:9], wave[:9]) + np.diag(wave[:9])), np.log1p(wave).sum(),
             wave.sum(), np.einsum("n,n->", wave, np.log(wave))]  # fmt: skip
    whole = hashlib.sha256(np.array(parts, dtype="<f8").tobytes())
    for parameter in parameters:
        whole.update(parameter.detach().numpy().astype("<f4").tobytes())
    return whole.hexdigest()


def within(tight: float, loose: float) -> float:
    """The tolerance of float64 results: tight where the arithmetic is that of the stored values. Elsewhere, as vector
    units of another width add in another order, differences of the last digit pass through the fits, whose minima are
    flat: up to 3e-6 of a law from the losses of a training run, 1e-7 from losses that are the same. There it is loose.
    """
    return tight if stored("arithmetic.json") == arithmetic() else loose


def write_json(name: str, value) -> None:
    (DATA / name).write_text(json.dumps(value, indent=None if name == "training.json" else 1) + "\n")
