"""The conductor on real gloo ranks: one truth, few collectives, and sums that equal one process in every layout."""

import itertools

import numpy as np
import pytest
import torch.distributed as dist

from ado_megatron.errors import RanksDisagree, SidecarError, UserError
from ado_megatron.measure.metrics import read_metrics
from ado_megatron.mixer.sidecar import write_sidecar
from ado_megatron.mixer.world import World
from tests.kit.mixing import Run, config, domains
from tests.kit.ranks import run_ranks


def place(rank, tp, pp, dp):
    """(tp_rank, dp_rank, pp_rank) in Megatron's default order: tensor innermost, pipeline outermost."""
    return rank % tp, rank // tp % dp, rank // (tp * dp)


def run_of(rank, path, tp, pp, dp, conf, **kwargs):
    tp_rank, dp_rank, pp_rank = place(rank, tp, pp, dp)
    world = World.detect(contributes=tp_rank == 0 and pp_rank == pp - 1)
    return Run(path, conf, world=world, dp=dp, dp_rank=dp_rank, **kwargs)


def _train(rank, path, tp, pp, dp, steps):
    run = run_of(rank, path, tp, pp, dp, config(), steps=steps).start().train(steps)
    run.mixer.close()
    return run.stream, run.mixer.schedule.digest


def step_lines(path):
    return [r for r in read_metrics(path / "ado" / "metrics.jsonl") if r["type"] == "step"]


def check_layout(tmp_path, tp, pp, dp, steps=50):
    Run(tmp_path / "one", config(), steps=steps).start().train(steps).mixer.close()
    results = run_ranks(_train, tp * pp * dp, tmp_path / "many", tp, pp, dp, steps)
    assert all(result == results[0] for result in results)  # the same stream and table on every rank
    one, many = step_lines(tmp_path / "one"), step_lines(tmp_path / "many")
    assert len(one) == steps // 5
    for a, b in zip(one, many, strict=True):
        assert a["counts_K"] == b["counts_K"] and a["tokens_K"] == b["tokens_K"]
        np.testing.assert_allclose(b["loss_K"], a["loss_K"], rtol=1e-6)


@pytest.mark.parametrize(("tp", "pp", "dp"), [(1, 1, 2), (2, 2, 1)])
def test_sums_equal_one_process(tmp_path, tp, pp, dp):
    check_layout(tmp_path, tp, pp, dp)


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp", "dp"), [s for s in itertools.product((1, 2), repeat=3) if 1 < np.prod(s)])
def test_sums_equal_one_process_in_every_layout(tmp_path, tp, pp, dp):
    check_layout(tmp_path, tp, pp, dp)


def _traffic(rank, path):
    run = run_of(rank, path, 1, 1, 2, config(refit_interval=20), steps=100).start()
    traffic, made = run.mixer.world.traffic, {}
    for step in range(1, 100):
        before = traffic.calls
        run.train(step)
        if traffic.calls > before:
            made[step] = traffic.calls - before
    return made


def test_collectives_happen_at_cuts_and_publications_alone(tmp_path):
    made, _ = run_ranks(_traffic, 2, tmp_path)
    # lag 1 + lead 2: the fit of block 20 is due at once, so the sum, the broadcast and the comparison meet in one step.
    assert {step: calls for step, calls in made.items() if calls == 3} == {21: 3, 41: 3, 61: 3, 81: 3}
    # Between them a broadcast and a comparison for the next rows: no more are published than are needed soon, so that a
    # change by hand comes into force soon. A piece is log_interval 5 blocks here, by default fit lag + 1.
    rest = sorted(step for step, calls in made.items() if calls == 2)
    assert len(rest) + 4 == len(made) and rest == [6, 12, 18, 27, 33, 39, 47, 53, 59, 67, 73, 79, 87, 93]


def _other_option(rank, path):
    conf = config(min_share=0.02 if rank == 1 else None)
    run = run_of(rank, path, 1, 1, 3, conf)
    with pytest.raises(RanksDisagree, match=r"rank 1 started with another --ado-min-share .*0\.02 against 0\.01"):
        run.start()


def _other_data(rank, path):
    lengths = (1000, 300, 71 if rank == 2 else 70)
    run = run_of(rank, path, 1, 1, 3, config(), doms=domains(lengths=lengths))
    with pytest.raises(RanksDisagree, match="rank 2 started with another data than rank 0"):
        run.start()


def test_a_rank_that_started_with_something_else_is_found_at_start(tmp_path):
    run_ranks(_other_option, 3, tmp_path / "a")
    run_ranks(_other_data, 3, tmp_path / "b")


def _altered_row(rank, path):
    run = run_of(rank, path, 1, 1, 2, config()).start().train(15)
    publish = run.mixer.schedule.publish

    def altered(first, rows_SxC):
        rows_SxC = rows_SxC.copy()
        if rank == 1:
            rows_SxC[2, :2] += [1, -1]
        return publish(first, rows_SxC)

    run.mixer.schedule.publish = altered
    first = run.mixer.schedule.planned
    words = f"rank 1: the mixture differs from that of rank 0 from block {first + 2} on"
    with pytest.raises(RanksDisagree, match=words):
        run.train(30)
    assert run.step == 17  # at the publication, before a batch of those rows


def test_a_row_that_differs_stops_the_run_before_the_next_batch(tmp_path):
    run_ranks(_altered_row, 2, tmp_path)


def _bad_sidecar(rank, path, words):
    run = run_of(rank, path, 1, 1, 2, config())
    with pytest.raises(SidecarError, match=words):
        run.start(path / "s.ado")


def test_every_rank_hears_why_a_sidecar_is_refused(tmp_path):
    run_ranks(_bad_sidecar, 2, tmp_path, "cannot be read")
    write_sidecar(tmp_path / "s.ado", {"block_size": 16}, {})
    (tmp_path / "s.ado").write_bytes((tmp_path / "s.ado").read_bytes()[:-3])
    run_ranks(_bad_sidecar, 2, tmp_path, "truncated")


def _wrong_position(rank, path):
    run = run_of(rank, path, 1, 1, 2, config())
    with pytest.raises(SidecarError, match="has no sidecar"):
        run.mixer.start(160, step=10)


def test_every_rank_hears_of_a_position_without_a_sidecar(tmp_path):
    run_ranks(_wrong_position, 2, tmp_path)


def _part(rank, path, tp, pp, dp, stop, save, load):
    run = run_of(rank, path, tp, pp, dp, config(), steps=60)
    run.start(path / "s.ado" if load else None).train(stop)
    if save:
        run.save(path / "s.ado")
    run.mixer.close()
    dist.barrier()
    return run.stream


def test_a_resume_with_another_layout_goes_on_with_the_same_stream(tmp_path):
    whole = Run(tmp_path / "one", config(), steps=60).start().train(60).stream
    stream = run_ranks(_part, 2, tmp_path, 1, 1, 2, 25, True, False)[0]
    stream += run_ranks(_part, 4, tmp_path, 2, 2, 1, 47, True, True)[0]
    stream += run_ranks(_part, 1, tmp_path, 1, 1, 1, 60, False, True)[0]
    assert stream == whole


def _unwritable(rank, path):
    run = run_of(rank, path, 1, 1, 2, config()).start().train(5)
    (path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not be written"):
        run.save(path / "file" / "s.ado")


def test_every_rank_hears_that_a_checkpoint_could_not_be_written(tmp_path):
    run_ranks(_unwritable, 2, tmp_path)
