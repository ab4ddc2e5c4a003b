"""`ado-megatron replay` against a recorded trace of the released loop, and its contract."""

import pathlib

import numpy as np

from ado_megatron import replay

GOLDEN = pathlib.Path(__file__).parent / "data" / "released_k3.npz"


def test_released_reproduces_the_recorded_weights(tmp_path):
    out = tmp_path / "out.npz"
    assert replay.main([str(GOLDEN), "--profile", "released", "--out", str(out)]) == 0
    expected = np.load(GOLDEN)["expected_weights_TxK"]
    weights = np.load(out)["weights_TxK"]
    assert np.abs(expected - expected[0]).max() > 0.05, "the recorded weights move"
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-12)
