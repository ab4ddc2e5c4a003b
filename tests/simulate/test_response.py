"""Responses: the form, the file and what is wrong with it, the best fixed mixture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ado_megatron.errors import UserError
from ado_megatron.simulate import PowerResponse, best_static, read_response

GOOD = dict(log_beta_M=np.zeros(2), log_epsilon_M=np.zeros(2), alpha_M=np.full(2, 0.5), gamma_MxK=np.eye(2),
            natural_K=np.array([3.0, 1.0]), names_K=np.array(["a", "b"]), steps=np.int64(100))  # fmt: skip


def write(path, **changes):
    arrays = {name: value for name, value in (GOOD | changes).items() if value is not None}
    np.savez(path, **arrays)
    return path


def test_the_form_by_hand():
    response = PowerResponse(np.log([2.0, 1.0]), np.log([1.0, 0.5]), np.array([0.5, 1.0]),
                             np.array([[1.0, 0.25], [0.0, 1.0]]), 10.0)  # fmt: skip
    np.testing.assert_allclose(response([40.0, 0.0]), [1 + 2 / 2, np.inf])
    np.testing.assert_allclose(response([80.0, 40.0]), [1 + 2 / 3, 0.5 + 1 / 4])


def test_a_file_is_read(tmp_path):
    file = read_response(write(tmp_path / "r.npz"))
    assert file.natural_K.tolist() == [0.75, 0.25] and file.names_K == ("a", "b") and file.steps == 100
    np.testing.assert_allclose(file.of_samples(8)([8.0 * 4, 8.0 * 16]), [1.5, 1.25])


@pytest.mark.parametrize("changes, words", [
    ({"alpha_M": None, "steps": None}, "lacks alpha_M, steps;"),
    ({"gamma_MxK": np.ones((3, 2))}, r"gamma_MxK has shape \(3, 2\).*must be \(2, 2\)"),
    ({"log_beta_M": np.zeros(3)}, r"log_beta_M has shape \(3,\)"),
    ({"natural_K": np.ones((2, 2))}, "natural_K has shape"),
    ({"alpha_M": np.array([0.5, np.nan])}, "alpha_M holds nan"),
    ({"log_epsilon_M": np.array([np.inf, 0])}, "log_epsilon_M holds inf"),
    ({"alpha_M": np.array(["x", "y"])}, "alpha_M must hold numbers"),
    ({"natural_K": np.array([1.0, -1.0])}, "natural_K holds -1"),
    ({"gamma_MxK": np.array([[1.0, 0.0], [0.0, 0.0]])}, "each row of gamma_MxK"),
    ({"steps": np.int64(0)}, "something above 0"),
    ({"names_K": np.array(["a", "a"])}, "same name"),
])  # fmt: skip
def test_a_bad_file_is_a_sentence(tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        read_response(write(tmp_path / "r.npz", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_what_is_no_file_is_a_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(UserError, match="r.npz cannot be read as an .npz of a response: .+"):
        read_response(tmp_path / "r.npz")


@given(st.lists(st.floats(0.1, 3.0), min_size=2, max_size=6), st.floats(0.1, 1.0), st.integers(0, 100))
def test_the_best_fixed_mixture_where_it_is_known(beta, alpha, seed):
    """Own samples and one exponent: equal marginal gains, so n_k ∝ (τ_k β_k)^(1/(1+α))."""
    beta_K, num = np.array(beta), len(beta)
    target_K = np.random.default_rng(seed).dirichlet(np.full(num, 5.0))
    response = PowerResponse(np.log(beta_K), np.zeros(num), np.full(num, alpha), np.eye(num), 1.0)
    expected_K = (target_K * beta_K) ** (1 / (1 + alpha))
    expected_K /= expected_K.sum()
    weights_K, loss = best_static(response, target_K, 1000.0, np.full(num, 1 / num))
    assert loss <= target_K @ response(expected_K * 1000.0) + 1e-7
    np.testing.assert_allclose(weights_K, expected_K, atol=2e-3)


def test_the_best_fixed_mixture_leaves_a_prior_of_zero():
    response = PowerResponse(np.zeros(3), np.zeros(3), np.full(3, 0.5), np.eye(3) + 0.1, 1.0)
    weights_K, _ = best_static(response, np.array([0.4, 0.4, 0.2]), 100.0, np.array([0.5, 0.0, 0.5]))
    assert weights_K[1] == 0 and weights_K[0] > weights_K[2] > 0
