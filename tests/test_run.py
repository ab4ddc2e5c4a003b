"""Our options taken out of a launch line, checkouts recognised, what does not fit refused. No host is needed."""

import functools
import sys
from types import SimpleNamespace

import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.hosts import MARKS, hooks, megatron_deepspeed, megatron_lm, recognise
from ado_megatron.hosts.arguments import parse, split_arguments
from ado_megatron.hosts.session import Session
from ado_megatron.run import main


@pytest.mark.parametrize(
    ("line", "ours", "theirs"),
    [
        ("s.py --lr 1 --ado-audit --bf16", "--ado-audit", "s.py --lr 1 --bf16"),
        ("s.py --ado-seed 3 --data-path 0.5 a 0.5 b", "--ado-seed 3", "s.py --data-path 0.5 a 0.5 b"),
        ("s.py --ado-seed=3 x --no-ado-shadow y", "--ado-seed=3 --no-ado-shadow", "s.py x y"),
        ("s.py --lr 1 --ado-off --ado-prior natural -- z", "--ado-off --ado-prior natural", "s.py --lr 1 -- z"),
    ],
)  # fmt: skip
def test_our_options_are_taken_out_and_the_order_of_the_others_stays(line, ours, theirs):
    assert split_arguments(line.split()) == (ours.split(), theirs.split())


def test_the_launchers_local_rank_goes_behind_the_script(tmp_path):
    script = tmp_path / "pretrain_gpt.py"
    script.write_text("")
    config, path, arguments = parse(["--local_rank=1", str(script), "--lr", "1", "--ado-refit-interval", "7"])
    assert config == AdoConfig(refit_interval=7) and path == str(script)
    assert arguments == ["--local_rank=1", "--lr", "1"]


def test_a_missing_script_is_one_sentence_and_exit_code_two(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["no_such_script.py", "--ado-audit"])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert "must be the path of the training script, not 'no_such_script.py'" in error and error.count("\n") == 1


def test_off_runs_the_script_as_its_authors_wrote_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "neighbour.py").write_text("name = 'neighbour'")
    script = tmp_path / "train.py"
    script.write_text("import sys, neighbour\nprint(__name__, sys.argv[1:], neighbour.name)")
    monkeypatch.setattr(sys, "path", ["here", *sys.path])
    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.delenv("ADO_CPU", raising=False)
    main([str(script), "--lr", "1", "--ado-off", "--ado-seed", "3"])
    assert capsys.readouterr().out == "__main__ ['--lr', '1'] neighbour\n"


@pytest.mark.parametrize("host", MARKS)
def test_a_checkout_is_recognised_by_its_files(host, tmp_path, monkeypatch):
    for name in MARKS[host]:
        file = tmp_path / "megatron" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    (tmp_path / "megatron" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "megatron"]:
        monkeypatch.delitem(sys.modules, name)
    assert recognise() == (host, tmp_path)
    (tmp_path / "megatron" / MARKS[host][0]).unlink()
    with pytest.raises(UserError, match=f"no host was recognised.*tried {'.*'.join(MARKS)}"):
        recognise()


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


LM_ARGUMENTS = {"dataloader_type": "single"}
DEEPSPEED_ARGUMENTS = {
    "dataloader_type": "single", "deepspeed_config_dict": {}, "data_efficiency_curriculum_learning": False,
    "curriculum_learning_legacy": False, "repeated_dataloader": False, "train_data_exact_num_epochs": None,
    "train_desc_path": None, "train_doc_idx_path": None, "train_sample_idx_path": None, "train_shuffle_idx_path": None,
    "retro_add_retriever": False, "mos": False, "kd": False, "ds_sequence_parallel_fpdt": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("host", "change", "word"),
    [
        (megatron_lm, {"mock_data": True}, "--mock-data"),
        (megatron_lm, {"phase_transition_iterations": [5]}, "--phase-transition-iterations"),
        (megatron_lm, {"dataloader_type": "cyclic"}, "--dataloader-type cyclic"),
        (megatron_lm, {"dataloader_type": "external"}, "--dataloader-type external"),
        (megatron_lm, {"hybrid_context_parallel": True}, "--hybrid-context-parallel"),
        (megatron_lm, {"sft": True}, "--sft"),
        (megatron_lm, {"perform_rl_step": True}, "--perform-rl-step"),
        (megatron_lm, {"retro_add_retriever": True}, "retro"),
        (megatron_deepspeed, {"data_efficiency_curriculum_learning": True}, "data efficiency"),
        (megatron_deepspeed, {"deepspeed_config_dict": {"data_efficiency": {"enabled": True}}}, "data efficiency"),
        (megatron_deepspeed, {"curriculum_learning_legacy": True}, "curriculum"),
        (megatron_deepspeed, {"dataloader_type": "cyclic"}, "--dataloader-type cyclic"),
        (megatron_deepspeed, {"repeated_dataloader": True}, "--repeated-dataloader"),
        (megatron_deepspeed, {"train_data_exact_num_epochs": 2}, "--train-data-exact-num-epochs"),
        (megatron_deepspeed, {"train_doc_idx_path": "x"}, "--train-doc-idx-path"),
        (megatron_deepspeed, {"retro_add_retriever": True}, "retro"),
        (megatron_deepspeed, {"kd": True}, "distillation"),
    ],
)
def test_exclusions_are_one_sentence_each_and_nothing_else_is_excluded(host, change, word):
    plain = LM_ARGUMENTS if host is megatron_lm else DEEPSPEED_ARGUMENTS
    assert not any(excluded for excluded, _ in host.exclusions(SimpleNamespace(**plain)))
    sentences = [text for excluded, text in host.exclusions(SimpleNamespace(**{**plain, **change})) if excluded]
    assert len(sentences) == 1 and word in sentences[0]


def test_shadow_mode_says_why_it_measures_nothing_and_goes_on(capsys):
    with pytest.raises(UserError, match="no mixture"):
        Session(AdoConfig()).refuse("there is no mixture")
    session = Session(AdoConfig(shadow=True))
    session.refuse("there is no mixture")
    session.refuse("there is no mixture")
    assert session.silent and capsys.readouterr().out == "ado: nothing is measured in this run: there is no mixture\n"
