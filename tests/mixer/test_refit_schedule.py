"""When snapshots are taken and from which block their laws hold, by hand."""

from hypothesis import given
from hypothesis import strategies as st

from ado_megatron.config import AdoConfig
from ado_megatron.mixer.refit_schedule import PendingRefit, RefitSchedule


def schedule(fit_lag, lookahead, interval=20, **options):
    config = AdoConfig(refit_interval=interval, start_step=interval, early_refits=False, **options)
    return RefitSchedule(config.resolved(), fit_lag, lookahead)


def test_a_cycle_by_hand():
    """Interval 20, lag 7, lookahead 3: the laws of block 20 hold from block 28 on, so the rows from 28 on are
    published when 26 blocks are done, when 3 rows (26, 27 and the one before) are still ahead."""
    refits = schedule(7, 3)
    assert refits.next_snapshot == 20 and refits.planned_until == 28
    assert refits.pop_due(1000) is None, "nothing was taken yet"
    assert refits.take(21) == PendingRefit(20, 21)
    assert refits.next_snapshot == 40 and refits.planned_until == 28
    assert [refits.pop_due(done) for done in (21, 25)] == [None, None]
    assert refits.pop_due(26) == PendingRefit(20, 21)
    assert refits.planned_until == 48


def test_early_refits_double_until_the_interval():
    config = AdoConfig(refit_interval=1000, start_step=100, early_refits=True, profile="ado").resolved()
    refits, taken = RefitSchedule(config, 0, 1), []
    while refits.next_snapshot < 3000:
        taken.append(refits.take(refits.next_snapshot + 1).block)
    assert taken == [100, 200, 400, 800, 1000, 2000]


def test_without_fits_rows_are_planned_interval_by_interval_all_the_same():
    refits = schedule(0, 1, policy="static")
    assert [refits.take(0).block for _ in range(3)] == [20, 40, 60]


def test_a_restored_plan_goes_on():
    refits = schedule(45, 2)
    for _ in range(2):
        refits.take(refits.next_snapshot + 1)
    again = schedule(45, 2)
    again.restore(refits.next_snapshot, [(refit.block, refit.step) for refit in refits.pending])
    assert again.pending == refits.pending and again.planned_until == refits.planned_until == 66


@given(st.integers(0, 60), st.integers(1, 30), st.integers(1, 25))
def test_a_reader_never_needs_a_row_that_is_not_published(fit_lag, lookahead, interval):
    """Before block b is read by workers `lookahead` − 1 blocks ahead its row is known, with the lag that is taken."""
    fit_lag = max(fit_lag, lookahead - 1)  # what a run needs: a smaller lag is refused or synchronous
    refits = schedule(fit_lag, lookahead, interval)
    published = refits.planned_until
    for done in range(1, 200):
        assert published >= done - 1 + lookahead
        while refits.next_snapshot < done:
            refits.take(done)
        while refits.pop_due(done) is not None:
            published = refits.planned_until


@given(st.integers(1, 40), st.integers(0, 60), st.booleans(), st.sampled_from(["ado", "static"]))
def test_the_next_snapshot_is_the_first_block_that_is_a_refit_or_a_multiple_of_the_interval(
    interval, start, early, policy
):  # fmt: skip
    config = AdoConfig(refit_interval=interval, start_step=start, early_refits=early, policy=policy).resolved()
    refits = RefitSchedule(config, 0, 1)
    for block in range(100):
        wanted = next(b for b in range(block + 1, 1000) if b % interval == 0 or config.refit_at(b))
        assert refits.snapshot_after(block) == wanted
