"""Hook points are checked, all of them, and a script's functions are found."""

import contextlib
import functools
import weakref
from types import SimpleNamespace

import pytest

from ado_megatron.errors import UserError
from ado_megatron.hosts import hooks, megatron_deepspeed, megatron_lm


def test_hook_points_that_do_not_fit_are_all_named():
    point = hooks.HookPoint
    good = point("json", "JSONEncoder.encode", ("self", "o"))
    bad = [
        point("no_such_module", "train", ()),
        point("json", "no_such_function", ()),
        point("json", "dumps", ("thing",)),
        point("json", "__doc__", ()),
    ]
    hooks.check([good], "checkout")
    with pytest.raises(UserError) as error:
        hooks.check([good, *bad], "checkout")
    for text in (
        "no_such_module cannot be imported", "json.no_such_function does not exist", "json.dumps takes (obj,",
        "expected to begin with (thing)", "json.__doc__ is not a function", "5 hook points were tried",
    ):  # fmt: skip
        assert text in str(error.value)


def test_the_script_is_found_behind_partials_and_wrappers():
    def forward_step(batch, model):
        return batch

    @functools.wraps(forward_step)
    def outer(*args):
        return forward_step(*args)

    assert hooks.script_globals(functools.partial(outer, 1)) is globals()


class Recorder:
    """Stands for a session whose methods note their calls."""

    def __init__(self, token=None):
        self.calls, self.token = [], token
        self.at_end = contextlib.ExitStack()

    def save(self, *place):
        self.calls.append(("save", *place))
        return self.token

    def abandon(self):
        self.calls.append("abandon")

    def close(self):
        self.calls.append("close")


def framework(**arguments):
    settings = SimpleNamespace(save="run", consumed_train_samples=96, **arguments)
    return settings, hooks.Framework("toy", lambda: settings, None, None, None, None)


@pytest.mark.parametrize("token", ["5f09", None])
def test_the_checkpoint_keeps_the_token_of_its_sidecar(token):
    session, kept = Recorder(token), []
    settings, toy = framework(ado_token="of the save before")
    save = hooks.save_checkpoint(session, toy, lambda iteration, model: kept.append(settings.ado_token))
    save(12, "model")
    assert session.calls == [("save", "run", 12, 96)] and kept == [token]


def test_the_arguments_of_a_loaded_checkpoint_are_overheard():
    session = SimpleNamespace()
    loaded = SimpleNamespace(ado_token="5f09", train_iters=3, global_batch_size=4, seed=7)
    seen = []
    check = hooks.check_checkpoint_args(session, None, lambda *args, **kwargs: seen.append((args, kwargs)))
    check(loaded, skip_args={"x"})
    assert seen == [((loaded,), {"skip_args": {"x"}})]
    assert session.saved_token == "5f09" and session.saved_layout["seed"] == 7


@pytest.mark.parametrize(
    ("ending", "code", "calls"),
    [
        (None, None, ["close"]), (SystemExit(0), 0, ["close"]), (SystemExit(3), 3, []),
        (UserError("no more data"), 2, ["abandon"]),
    ],
)  # fmt: skip
def test_the_end_of_a_run_closes_the_session_and_a_user_error_is_a_sentence(ending, code, calls, capsys):
    session, let_go = Recorder(), []
    session.at_end.callback(let_go.append, "loaders")

    def stock():
        assert let_go == []
        if ending is not None:
            raise ending
        return "done"

    pretrain = hooks.pretrain(session, None, stock)
    if ending is None:
        assert pretrain() == "done"
    else:
        with pytest.raises(SystemExit) as leaving:
            pretrain()
        assert leaving.value.code == code
    assert session.calls == calls and let_go == ["loaders"]
    assert ("error: no more data" in capsys.readouterr().err) == isinstance(ending, UserError)


@pytest.mark.parametrize("ending", [None, SystemExit(0)])
def test_what_closing_finds_is_a_sentence_too(ending, capsys):
    session = Recorder()

    def full():
        raise UserError("rank 1: no space left")

    def stock():
        if ending is not None:
            raise ending

    session.close = full
    with pytest.raises(SystemExit) as leaving:
        hooks.pretrain(session, None, stock)()
    assert leaving.value.code == 2 and session.calls == ["abandon"]
    assert capsys.readouterr().err == "ado_megatron.run: error: rank 1: no space left\n"


def test_what_the_training_holds_is_let_go_before_the_process_ends(monkeypatch):
    """Else a loader's workers are killed at exit, and leave their temporary directories."""

    class Loader:
        pass

    held, alive = [], []

    def stock():
        loader = Loader()
        held.append(weakref.ref(loader))
        try:
            raise OSError("a cause, which holds the frame too")
        except OSError as error:
            raise UserError("no more data") from error

    monkeypatch.setattr(hooks.console, "end_with", lambda error: alive.append((str(error), held[0]())))
    hooks.pretrain(Recorder(), None, stock)()
    assert alive == [("no more data", None)]


def test_a_copied_blend_is_said_before_the_data_is_built(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "a.bin").write_bytes(b"")
    (tmp_path / "blend.txt").write_text("1 /elsewhere/a")
    settings, _ = framework(data_args_path=str(tmp_path / "blend.txt"))
    toy = hooks.Framework("toy", lambda: settings, lambda settings: [], lambda: None, None, None)
    counted = []
    session = SimpleNamespace(resume=lambda facts: None, open=lambda facts, loaders: counted.append(loaders))
    for built, number in ((("train", ["valid", "valid"], None), 3), ((None, [None], None), 0)):
        assert hooks.loaders(session, toy, lambda provider, built=built: built)(None) == built
        assert counted.pop() == number
    assert capsys.readouterr().out.startswith(f"ado: {tmp_path}/blend.txt names /elsewhere/a, not the a beside it")


@pytest.mark.parametrize("module", [megatron_lm, megatron_deepspeed])
def test_the_table_of_a_framework_names_each_function_once_and_hooks_what_both_share(module):
    names = [f"{point.module}:{point.name}" for point in module.HOOK_POINTS]
    assert len(set(names)) == len(names)
    hooked = module.wrappers(None)
    assert set(hooked) == {hooks.LOSS} | {
        f"{point.module}:{point.name}" for point in module.HOOK_POINTS if point.wrap is not None
    }
    for name in ("pretrain", "train", "train_step", "save_checkpoint", "training_log", "evaluate_and_print_results"):
        assert f"{module.TRAINING}:{name}" in hooked
