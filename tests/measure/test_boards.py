"""Boards: one value a name and step, and none of them stops the others."""

from ado_megatron.measure.boards import Boards


def test_a_board_that_fails_is_told_once_and_the_other_goes_on(caplog):
    boards, written = Boards(), []

    def full(scalars, step):
        raise RuntimeError("disk full")

    both = {"TensorBoard": full, "W&B": lambda *line: written.append(line)}
    for step in (1, 2):
        boards.write(both, {"ado/weight/wiki": 0.5}, step)
    boards.write({}, {"ado/weight/wiki": 0.5}, 3)  # a rank that has none
    assert [record.getMessage() for record in caplog.records] == [
        "weights and losses for TensorBoard cannot be written, the training goes on: disk full"
    ]
    assert written == [({"ado/weight/wiki": 0.5}, 1), ({"ado/weight/wiki": 0.5}, 2)]


def test_the_first_value_of_a_name_stands_where_a_step_has_two():
    boards, written = Boards(), []
    board = {"W&B": lambda scalars, step: written.append((step, scalars))}
    boards.write(board, {"ado/weight/a": 0.5}, 3)
    boards.write(board, {"ado/validation/a": 2.0, "ado/validation/b": 3.0}, 3)
    boards.write(board, {"ado/validation/a": 2.5, "ado/validation/c": 4.0}, 3)  # the evaluation after the last step
    boards.write(board, {"ado/validation/a": 2.5}, 3)
    boards.write(board, {"ado/validation/a": 1.5}, 4)
    assert written == [
        (3, {"ado/weight/a": 0.5}), (3, {"ado/validation/a": 2.0, "ado/validation/b": 3.0}),
        (3, {"ado/validation/c": 4.0}), (4, {"ado/validation/a": 1.5}),
    ]  # fmt: skip
