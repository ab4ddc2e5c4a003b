"""The evaluation of a host by domain: which prefix is whose, what is measured and written. No host is needed."""

import json
import pickle

import numpy as np
import pytest
import torch

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.hosts.evaluation import EVALUATED, EvaluatedSet, Validation
from ado_megatron.hosts.session import Session
from ado_megatron.measure.metrics import read_metrics
from ado_megatron.mixer.world import World
from ado_megatron.report import read_run
from tests.kit import mixing


class Blend(torch.utils.data.Dataset):
    """A host's blend of two prefixes: sample i is of dataset_index[i]."""

    split = "valid"
    dataset_index = np.array([0, 1, 1, 0, 1, 1], dtype=np.int16)

    def __len__(self):
        return len(self.dataset_index)

    def __getitem__(self, i):
        return {"text": np.full(3, i), "dataset_id": self.dataset_index[i]}


class Single(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        return {"text": np.full(3, i)}


@pytest.mark.parametrize(
    ("prefix", "domain"),
    [
        ("/data/wiki_text_document", "data/wiki"),
        ("/elsewhere/wiki_text_document", "data/wiki"),
        ("/data/wiki_valid_text_document", "data/wiki"),
        ("/data/wiki-test", "data/wiki"),
        ("/data/code_val_document", "data/code_train"),
        ("/data/b/part", "b/part"),
        ("/data/val_text_document", "val"),  # no name is left without it
        ("/data/wikipedia_text_document", "wikipedia"),
        ("/data/c/part_text_document", "part"),  # two domains have a prefix of this name
    ],
)
def test_a_prefix_belongs_to_the_domain_of_its_name(prefix, domain):
    train = ["/data/wiki_text_document", "/data/code_train_text_document", "/data/a/part", "/data/b/part"]
    ours = Domains.build(train, [1] * 4, [5] * 4, AdoConfig())
    names, (number,) = ours.extended([prefix], AdoConfig())
    assert names[:4] == ours.names_K and names[number] == domain
    assert len(names) == (4 if number < 4 else 5)


def test_groups_take_prefixes_by_their_names_and_patterns(tmp_path):
    (tmp_path / "groups.json").write_text(json.dumps({"web": ["cc_*", "wiki"], "code": ["py"]}))
    config = AdoConfig(groups=str(tmp_path / "groups.json"))
    ours = Domains.build(["/d/cc_2020", "/d/wiki", "/d/py"], [1] * 3, [5] * 3, config)
    prefixes = ["/v/wiki_valid", "/v/cc_2024", "/v/py", "/v/law", "/v/web", "/v/law"]
    # a prefix that happens to be called as a group goes by its path
    assert ours.extended(prefixes, config) == (("web", "code", "law", "/v/web"), [0, 0, 1, 2, 3, 2])


def test_a_watched_set_is_the_hosts_and_carries_datasets_once_bound():
    blend, single = EvaluatedSet(Blend(), "validation", None), EvaluatedSet(Single(), "test", 0)
    assert EVALUATED not in blend[1] and len(blend) == 6
    assert blend.split == "valid" and not hasattr(blend, "no_such_name")
    blend.bind(0), single.bind(2)
    loader = torch.utils.data.DataLoader(blend, batch_size=3, num_workers=1, multiprocessing_context="spawn")
    batches = list(loader)
    assert torch.cat([batch[EVALUATED] for batch in batches]).tolist() == Blend.dataset_index.tolist()
    assert torch.cat([batch["text"] for batch in batches])[:, 0].tolist() == list(range(6))
    assert {int(pickle.loads(pickle.dumps(single))[i][EVALUATED]) for i in range(2)} == {2}


def opened(path, *, contributes=True):
    """A validation of two prefixes, one of them ours, and a test of one, ready to measure after 10 steps."""
    run = mixing.Run(path, steps=10, world=World(0, 1, contributes, torch.device("cpu"))).start().train(10)
    validation = Validation()
    sets = [
        validation.watch("validation", Blend(), ["data/wiki_valid", "data/law"]),
        validation.watch("test", Single(), ["data/code"]),
    ]
    validation.open(run.mixer)
    return run.mixer, validation, sets


def evaluate(validation, dataset, batch_size, loss):
    """Batches drawn ahead of their losses, as a pipeline does: token t of sample i has loss(i) + t, the last masked."""
    batches = [validation.drawn(b) for b in torch.utils.data.DataLoader(dataset, batch_size=batch_size)]
    for batch in batches:
        assert EVALUATED not in batch
        tokens = loss(batch["text"].double()) + torch.arange(3)
        validation.measure(tokens, torch.tensor([1.0, 1.0, 0.0]).expand(len(tokens), 3))


@torch.no_grad()
def test_an_evaluation_is_summed_by_domain_and_starts_again_from_zero(tmp_path):
    mixer, validation, (blend, single) = opened(tmp_path)
    evaluate(validation, blend, 2, lambda text: text)
    (first,) = validation.finish(10, mixer)
    wiki, law = np.mean([0, 3]) + 0.5, np.mean([1, 2, 4, 5]) + 0.5
    assert first.kind == "validation" and first.losses == pytest.approx({"wiki": wiki, "law": law})
    evaluate(validation, single, 1, lambda text: 2 * text)
    (second,) = validation.finish(10, mixer)
    assert second.kind == "test" and second.losses == {"code": 1.5}
    assert validation.finish(20, mixer) == []

    validations, tests = ([r for r in read_metrics(mixer.directory / "metrics.jsonl") if r["type"] == kind]
                          for kind in ("validation", "test"))  # fmt: skip
    assert validations == [{"type": "validation", "step": 10, "loss_K": [None, wiki, None], "tokens_K": [0, 4, 0],
                            "others": {"law": {"loss": law, "tokens": 8}}}]  # fmt: skip
    assert tests == [{"type": "test", "step": 10, "loss_K": [1.5, None, None], "tokens_K": [4, 0, 0]}]


def test_the_report_reads_what_a_host_evaluated(tmp_path):
    mixer, validation, (blend, single) = opened(tmp_path)
    with torch.no_grad():
        for dataset, step in ((blend, 10), (blend, 20), (single, 20)):
            evaluate(validation, dataset, 3, lambda text: text)
            validation.finish(step, mixer)
    mixer.close()
    run = read_run(tmp_path)
    assert run.validation_step_V.tolist() == [10, 20]
    assert np.isfinite(run.validation_VxK).tolist() == [[False, True, False]] * 2


@torch.no_grad()
def test_a_batch_without_its_loss_is_an_error_and_other_ranks_keep_none(tmp_path):
    mixer, validation, (blend, _) = opened(tmp_path / "a")
    validation.drawn({EVALUATED: torch.tensor([0])})
    with pytest.raises(RuntimeError, match="evaluation of step 5 drew 1 micro-batches whose loss was not measured"):
        validation.finish(5, mixer)
    mixer, validation, (blend, _) = opened(tmp_path / "b", contributes=False)
    evaluate(validation, blend, 2, lambda text: text)
    assert validation.finish(5, mixer) == []


def test_nothing_is_watched_unless_asked_for():
    stock = Blend()
    assert Session(AdoConfig()).evaluated_set("validation", stock, ["a", "b"]) is stock
    asked = Session(AdoConfig(validation=True))
    assert asked.evaluated_set("validation", None, ["a"]) is None
    assert [type(one) for one in asked.evaluated_set("validation", [stock, stock], ["a", "b"])] == [EvaluatedSet] * 2
    asked.silent = True
    assert asked.evaluated_set("validation", stock, ["a", "b"]) is stock
