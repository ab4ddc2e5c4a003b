"""We change nothing else of a training: same losses to the digit and same parameters to the bit."""

import pytest

from tests.kit.host_checkpoints import final_parameters
from tests.kit.host_runs import QUICK_ADO, tail, train, write_domains

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]
HOSTS = ["lm", "lm_main", "deepspeed", "deepspeed_flat", "bridge"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("host")
    return directory, ["--data-path", *write_domains(directory)]


def assert_same_training(one, other):
    import torch

    for run in (one, other):
        assert run.status == 0, tail(run)
    assert len(one.curve) == 24 and one.curve == other.curve
    left, right = final_parameters(one), final_parameters(other)
    assert left.keys() == right.keys() and len(left) > 10
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("host", HOSTS)
def test_shadow_mode_leaves_the_stock_training_bit_identical(host, place):
    directory, data = place
    options = ["--num-workers", 2]
    stock = train(host, directory / f"{host}_stock", data, [*options, "--ado-off"], ranks=2)
    shadow = train(host, directory / f"{host}_shadow", data, [*options, "--ado-shadow", *QUICK_ADO], ranks=2)
    assert_same_training(stock, shadow)
    assert not (stock.directory / "ado").exists()
    measured = shadow.mixture_losses()
    assert measured[24] == pytest.approx(float(shadow.curve[24][0]), abs=2e-6)


@pytest.mark.parametrize("host", HOSTS)
def test_frozen_weights_train_as_our_blend_does_under_the_stock_loop(host, place):
    directory, data = place
    options = ["--num-workers", 0, "--ado-policy", "static", *QUICK_ADO[2:], "--ado-refit-interval", 100]
    hooked = train(host, directory / f"{host}_hooked", data, options, ranks=2)
    plain = train(host, directory / f"{host}_plain", data, options, ranks=2, module="tests.kit.host_frozen_driver")
    assert_same_training(hooked, plain)
    assert not list((plain.directory / "ado").glob("state_*"))


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_shadow_mode_does_not_refuse_what_stock_accepts(host, place):
    directory, data = place
    single = ["--data-path", data[2]]
    run = train(host, directory / f"{host}_single", single, ["--num-workers", 0, "--ado-shadow"], steps=4)
    assert run.status == 0, tail(run)
    assert "nothing is measured in this run" in run.log
    refused = train(host, directory / f"{host}_refused", single, ["--num-workers", 0], steps=4)
    assert refused.status != 0
    assert "the train data is a single prefix, so there is nothing to mix" in refused.log
