"""Records of a run whose domains are others now."""

from ado_megatron.measure.carried import carried


def test_values_go_with_their_domains_and_what_is_new_has_none():
    step = {"type": "step", "step": 5, "counts_K": [3, 5], "loss_K": [2.5, None], "weights_K": [0.4, 0.6],
            "epochs_C": [0.1, 0.2, 0.3], "time": 7.0}  # fmt: skip
    assert carried(step, [1, -1, 0], [2, -1]) == {
        "type": "step", "step": 5, "counts_K": [5, 0, 3], "loss_K": [None, None, 2.5], "weights_K": [0.6, 0, 0.4],
        "epochs_C": [0.3, 0], "time": 7.0,
    }  # fmt: skip
    fit = {"type": "fit", "step": 5, "stderr_Kx3": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "ok_K": [True, True],
           "reason_K": ["a", "b"]}  # fmt: skip
    new = carried(fit, [-1, 1], [])
    assert new["stderr_Kx3"] == [[None, None, None], [4.0, 5.0, 6.0]]
    assert new["ok_K"] == [False, True] and new["reason_K"] == ["", "b"]


def test_an_interval_of_domains_that_are_gone_and_a_record_of_others_are_left_out():
    gone = {"type": "step", "step": 5, "counts_K": [8, 0], "weights_K": [1.0, 0.0]}
    assert carried(gone, [1, -1], []) is None
    assert carried(gone, [2, 0], []) is None
    assert carried({"type": "alarm", "step": 5, "text": "x"}, [2, 0], []) == {"type": "alarm", "step": 5, "text": "x"}
