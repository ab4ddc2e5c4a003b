"""What is read from Megatron-Bridge's configuration, train state and loss functions, and put beside them."""

import functools
from types import SimpleNamespace

import pytest
import torch

from ado_megatron.errors import UserError
from ado_megatron.hosts import exclusions, hooks, megatron_bridge
from ado_megatron.hosts.bridge_run import layout_facts
from ado_megatron.hosts.megatron_bridge import overheard


def configuration(**dataset):
    values = {"split": "9,1,0", "random_seed": 7, "seq_length": 32, "blend": (["/a/wiki", "/b/law"], [0.7, 0.3]),
              "blend_per_split": None, "dataloader_type": "single", "data_path": None} | dataset  # fmt: skip
    return SimpleNamespace(
        dataset=type("GPTDatasetConfig", (SimpleNamespace,), {})(**values),
        train=SimpleNamespace(train_samples=None, train_iters=3, global_batch_size=4),
        model=SimpleNamespace(), inprocess_restart=None,
    )  # fmt: skip


def test_the_layout_in_a_checkpoint_is_that_of_the_run_that_wrote_it_wherever_the_data_lie():
    ours = layout_facts(configuration())
    saved = {  # run_config.yaml: mappings and lists
        "dataset": {"split": "9,1,0", "random_seed": 7, "seq_length": 32, "blend": [["/old/wiki", "law"], [0.7, 0.3]]},
        "train": {"train_iters": 3, "global_batch_size": 4},
    }
    assert ours == layout_facts(saved)
    assert ours["dataset.blend"] == [["wiki", "law"], [0.7, 0.3]] and ours["train_iters × global_batch_size"] == 12
    for other in (configuration(random_seed=8), configuration(blend=(["/a/wiki", "/b/law"], [0.6, 0.4]))):
        assert layout_facts(other) != ours


class State:
    """Bridge's train state, as far as it is hooked."""

    def state_dict(self):
        return {"step": torch.tensor(3)}

    def load_state_dict(self, state_dict):
        self.step = state_dict["step"].item()


@pytest.mark.parametrize("token", ["5f09", None])
def test_the_train_state_keeps_the_token_of_the_sidecar(token):
    save = megatron_bridge._state_dict(None, None, State.state_dict)
    load = megatron_bridge._load_state_dict(None, None, State.load_state_dict)
    saved, loaded = State(), State()
    saved.ado_token = token
    values = save(saved)
    assert all(isinstance(value, torch.Tensor) for value in values.values())
    assert set(values) == ({"step"} if token is None else {"step", "ado_token"})
    load(loaded, values)
    assert loaded.ado_token == token and loaded.step == 3
    loaded.load_state_dict(values)  # Bridge alone reads it, too


class Session:
    def __init__(self):
        self.seen = []

    def measure(self, loss, mask):
        self.seen.append((loss, mask))


def masked(loss_mask, output, **options):
    return (output * loss_mask).sum(), options


def mean(loss_mask, output_tensor):
    return (output_tensor * loss_mask).sum() / loss_mask.sum()


def no_data(output_tensor, non_loss_data):
    return "collected"


def test_losses_and_mask_are_overheard_and_the_loss_is_the_scripts():
    loss, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    session = Session()
    assert overheard(session, functools.partial(mean, mask))(loss) == 7 / 3
    assert overheard(session, functools.partial(lambda output, loss_mask: 5, loss_mask=mask))(loss) == 5
    assert [(one is loss, other is mask) for one, other in session.seen] == [(True, True)] * 2
    assert overheard(session, no_data)(loss, non_loss_data=True) == "collected" and len(session.seen) == 2


@pytest.mark.parametrize("loss_func", [mean, functools.partial(mean, None), functools.partial(mean, 3)])
def test_a_loss_function_without_a_mask_is_refused_when_it_is_called(loss_func):
    heard = overheard(Session(), loss_func)  # a stage that is not the last returns it, too, and never calls it
    with pytest.raises(UserError, match=r"does not return partial\(loss, loss_mask\)"):
        heard(torch.zeros(2, 2))


def test_losses_of_several_tensors_are_refused():
    with pytest.raises(UserError, match="over a tensor of losses"):
        overheard(Session(), functools.partial(mean, torch.ones(2)))((torch.zeros(2), torch.ones(2)))


@pytest.mark.parametrize(
    ("dataset", "other", "word"),
    [
        ({"blend": None}, {}, "mock data"),
        ({"dataloader_type": "cyclic"}, {}, "dataloader_type cyclic"),
        ({"fast_cache_load": True}, {}, "fast_cache_load"),
        ({"hybrid_context_parallel": True}, {}, "hybrid_context_parallel"),
        ({}, {"inprocess_restart": SimpleNamespace(enabled=True)}, "in-process restart"),
        ({}, {"model": SimpleNamespace(cuda_graph_impl="full_iteration")}, "full iteration"),
        ({}, {"model": SimpleNamespace(cuda_graph_impl="local", cuda_graph_scope="full_iteration")}, "full iteration"),
        ({}, {"model": SimpleNamespace(moe_expert_rank_capacity_factor=2.0)}, "moe_expert_rank_capacity_factor"),
        ({}, {"model": type("DistillationProvider", (), {})()}, "distillation"),
    ],
)
def test_what_is_not_served_is_refused_in_one_sentence(dataset, other, word):
    config = configuration(**dataset)
    vars(config).update(other)
    sentences = [sentence for excluded, sentence in exclusions.megatron_bridge(config) if excluded]
    assert len(sentences) == 1 and word in sentences[0]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"data_path": ["1", "/a/wiki"], "blend": None}, "GPTDatasetConfig"),
        ({"blend": None, "blend_per_split": [1]}, "GPTFIMDatasetConfig"),
    ],
)
def test_each_form_of_data_is_served(changes, kind):
    config = configuration(**changes)
    config.dataset = type(kind, (), vars(config.dataset))()
    assert not any(excluded for excluded, _ in exclusions.megatron_bridge(config))


def test_other_datasets_are_refused_by_their_name():
    config = SimpleNamespace(dataset=type("GPTSFTDatasetConfig", (), {})(), model=None)
    ((excluded, sentence),) = exclusions.megatron_bridge(config)
    assert excluded and sentence.startswith("datasets of a GPTSFTDatasetConfig are not served")


def test_the_table_names_each_function_once_and_no_loss_func_of_the_script():
    names = [f"{point.module}:{point.name}" for point in megatron_bridge.HOOK_POINTS]
    assert len(set(names)) == len(names)
    hooked = megatron_bridge.wrappers(None)
    assert hooks.LOSS not in hooked
    assert set(hooked) == {f"{one.module}:{one.name}" for one in megatron_bridge.HOOK_POINTS if one.wrap is not None}
