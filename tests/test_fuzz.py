"""Damaged files: whatever is in them, a reader says a sentence or gives a right result, soon and in little memory."""

import random
import resource
import signal

import numpy as np
import pytest

from ado_megatron.audit import audit
from ado_megatron.config import AdoConfig
from ado_megatron.errors import SidecarError, UserError
from ado_megatron.measure import DrawLog
from ado_megatron.mixer import sidecar
from ado_megatron.replay.command import replay, summary
from ado_megatron.replay.trace import read_trace
from ado_megatron.report import table
from ado_megatron.report.read import read_run
from ado_megatron.stream.sample_key import pack_key
from ado_megatron.tables import text_table
from tests.kit import mutations
from tests.kit.runs import make_run

SECONDS = 10.0  # a file may take, on a busy machine; the originals take a hundredth
MEMORY = 600 << 20  # bytes by which the process may grow over all files
EITHER = [pytest.param(100, id="some"), pytest.param(1700, id="many", marks=pytest.mark.slow)]
META = {"step": 7, "names_K": ["code", "wiki"], "config": {"seed": 1}}
ARRAYS = {"counts_SxC": np.arange(60, dtype=np.int32).reshape(30, 2), "credit_C": np.array([0.25, -0.25]),
          "ok_K": np.array([True, False]), "reason_K": np.array(["", "few points"])}  # fmt: skip


class TooLong(BaseException):
    """Not an Exception, so that no reader can swallow it."""


@pytest.fixture(autouse=True)
def bounded():
    """Every test in this file grows by no more than MEMORY."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def outcome(read):
    """What `read` returns, or None where it says a sentence; anything else fails, and so does a hang."""

    def stop(signum, frame):
        raise TooLong

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return read()
    except UserError as error:
        words = str(error)
        assert len(words) < 2000 and "\n" not in words and words.strip()
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def tried(cases, seed, write, read):
    """How many of the damaged files were read; each case has a number, so that one that fails can be made again."""
    good = 0
    for case in range(cases):
        write(random.Random(f"{seed}/{case}"))
        try:
            good += outcome(read) is not None
        except (Exception, TooLong) as error:
            raise AssertionError(f"case {case} of {seed}: {type(error).__name__}: {error}") from error
    return good


# ---------------------------------------------------------------- sidecars


@pytest.mark.parametrize("cases", EITHER)
def test_a_damaged_sidecar_is_refused_and_never_read_as_another(tmp_path, cases):
    data, path = sidecar.encode_sidecar(META, ARRAYS), tmp_path / "state.ado"

    def write(rng):
        path.write_bytes(mutations.bytes_of(rng, data))

    def read():
        meta, arrays = sidecar.read_sidecar(path)
        assert meta == META and all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)  # the rest is none
        return meta

    assert tried(cases // 2, "sidecar", write, read) < cases // 20  # a change undone by the next


@pytest.mark.parametrize("cases", EITHER)
def test_a_sidecar_whose_digest_is_right_but_not_its_content(tmp_path, cases):
    path, arrays = tmp_path / "state.ado", mutations.npz_of(ARRAYS)

    def write(rng):
        meta, payload, kind = '{"step": 7, "names_K": ["code", "wiki"]}', arrays, rng.randrange(4)
        if kind == 0:
            meta = mutations.json_of(rng, meta)
        elif kind == 1:
            payload = mutations.bytes_of(rng, payload)
        elif kind == 2:
            payload = mutations.members_of(rng, payload)
        content = mutations.signed(meta, payload, sidecar._digest)
        if kind == 3:  # the header alone
            line, rest = content.split(b"\n", 1)
            content = mutations.json_of(rng, line.decode()).encode() + b"\n" + rest
        path.write_bytes(sidecar.MAGIC + content)

    def read():
        meta, arrays = sidecar.read_sidecar(path)
        assert isinstance(meta, dict) and all(array.dtype.kind in "biufU" for array in arrays.values())
        return meta

    assert 0 < tried(cases - cases // 2, "signed", write, read) < cases // 2


def test_a_refused_sidecar_raises_its_own_error(tmp_path):
    (tmp_path / "s.ado").write_bytes(sidecar.MAGIC + mutations.signed("[1]", b"", sidecar._digest))
    with pytest.raises(SidecarError, match="the content of the sidecar .* is damaged"):
        sidecar.read_sidecar(tmp_path / "s.ado")


# ---------------------------------------------------------------- traces


def recorded():
    """The arrays of a trace of 60 steps of three domains with laws."""
    rng = np.random.default_rng(0)
    counts_TxK = rng.multinomial(32, [0.5, 0.3, 0.2], 60)
    return {
        "prior_K": np.array([0.5, 0.3, 0.2]), "counts_TxK": counts_TxK,
        "loss_TxK": 2 + 3 * np.maximum(np.cumsum(counts_TxK, 0), 1) ** -0.3, "law_steps_R": np.array([20, 40]),
        "laws_RxKx3": rng.normal(1, 0.1, (2, 3, 3)), "domains": np.array(["a", "b", "c"]), "start_step": np.array(20),
    }  # fmt: skip


@pytest.mark.parametrize("cases", EITHER)
def test_a_damaged_trace_is_refused_or_replayed(tmp_path, cases):
    arrays, path = recorded(), tmp_path / "trace.npz"
    data = mutations.npz_of(arrays)

    def write(rng):
        kind = rng.randrange(3)
        if kind == 0:
            path.write_bytes(mutations.bytes_of(rng, data))
        elif kind == 1:
            path.write_bytes(mutations.members_of(rng, data))
        else:
            path.write_bytes(mutations.npz_of(mutations.arrays_of(rng, arrays)))

    def read():
        trace = read_trace(path)
        steps, num = trace.counts_TxK.shape
        assert trace.loss_TxK.shape == (steps, num) and len(trace.names_K) == num and steps > 0
        assert trace.counts_TxK.min(initial=0) >= 0 and not np.isinf(trace.loss_TxK).any()
        if steps <= 200:
            result = replay(trace, AdoConfig(policy="ado", start_step=10**6))
            np.testing.assert_allclose(result.weights_TxK.sum(1), 1.0, rtol=1e-9)
            summary("ado", trace, result)
        return trace

    assert 0 < tried(cases, "trace", write, read) < cases


# ---------------------------------------------------------------- metrics.jsonl


@pytest.mark.parametrize("cases", EITHER)
def test_a_damaged_metrics_file_is_refused_or_reported(tmp_path, cases):
    make_run(tmp_path, names=["a", "b", "c"], prior=np.array([0.5, 0.3, 0.2]), steps=200, interval=25, caps=[10**6] * 3,
             planned=400)  # fmt: skip
    path = tmp_path / "ado" / "metrics.jsonl"
    text = path.read_text()

    def write(rng):
        if rng.random() < 0.25:
            path.write_bytes(mutations.bytes_of(rng, text.encode()))
        else:
            path.write_text(mutations.lines_of(rng, text))

    def read():
        run = outcome(lambda: read_run(tmp_path))
        if run is not None:
            assert np.isfinite(run.weights_SxK).all() and (run.counts_SxK >= 0).all()
            text_table(table.columns(run), table.LEFT)
            table.comparison_text(run, run)
        trace = outcome(lambda: read_trace(tmp_path))
        if trace is not None and len(trace.counts_TxK) <= 400:
            replay(trace, AdoConfig(start_step=10**6))
        return run

    assert 0 < tried(cases, "metrics", write, read) < cases


# ---------------------------------------------------------------- draw logs


@pytest.mark.parametrize("cases", EITHER)
def test_a_damaged_draw_log_is_refused_or_audited(tmp_path, cases):
    log = DrawLog(tmp_path / "ado" / "audit", 0, attempt=1, step=0, lengths_C=[50], seed=0)
    for step in range(20):
        log.drawn(step, [pack_key(step, 0)], [step])
        log.flush()
    data = log.path.read_bytes()

    def write(rng):
        log.path.write_bytes(mutations.bytes_of(rng, data))

    def read():
        result = audit(tmp_path)
        assert result.samples <= 20
        return result

    assert tried(cases // 5, "draws", write, read) > 0
