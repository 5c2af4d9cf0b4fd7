"""The rules behind the pool, without Ray: layout, dispatch, failures, efficiency."""

import errno
import itertools
from dataclasses import replace

import pytest

from eqmodel.errors import CheckpointError
from pipelines.calibrate import BUDGET_S, LEAST_PASSES, bounded, quartiles
from pipelines.dispatch import Dispatch
from pipelines.efficiency import Demand, Rates, core_us, ideal, mean, ratio
from pipelines.errors import AccessDenied, ObjectChanged, ObjectMissing, SettingsError, StorageError
from pipelines.failures import Failure, failure_of
from pipelines.layout import Layout, WorkerFlags, grown, lay_out
from pipelines.shards import Shard


@pytest.mark.parametrize(
    ("cpus", "gpus", "shards", "flags", "expected"),
    [
        # One CPU for each worker, two workers on two cores.
        (2, 0, 5, (None, None, None), Layout(2, 1.0, 0.0, 1, 2.0, 0.0)),
        # Never more workers than shards; the CPUs are shared out.
        (16, 0, 3, (None, None, None), Layout(3, 5.0, 0.0, 5, 16.0, 0.0)),
        (2, 0, 1, (None, None, None), Layout(1, 2.0, 0.0, 2, 2.0, 0.0)),
        # One GPU for each worker where there are GPUs, all CPUs to decode.
        (16, 4, 100, (None, None, None), Layout(4, 4.0, 1.0, 4, 16.0, 4.0)),
        (2, 8, 100, (None, None, None), Layout(2, 1.0, 1.0, 1, 2.0, 2.0)),
        (16, 1, 100, (None, None, 0.5), Layout(2, 8.0, 0.5, 8, 16.0, 1.0)),
        (16, 1, 100, (None, None, 0.0), Layout(16, 1.0, 0.0, 1, 16.0, 0.0)),
        # Flags; what was not asked for does not count as capacity.
        (16, 0, 100, ("4", None, None), Layout(4, 4.0, 0.0, 4, 16.0, 0.0)),
        (16, 0, 100, ("4", 2.0, None), Layout(4, 2.0, 0.0, 2, 8.0, 0.0)),
        (16, 0, 100, ("1:8", 4.0, None), Layout(4, 4.0, 0.0, 4, 16.0, 0.0)),
        # A cluster may grow to the minimum.
        (2, 0, 100, ("8", 1.0, None), Layout(8, 1.0, 0.0, 1, 2.0, 0.0)),
        (1, 0, 100, (None, None, None), Layout(1, 1.0, 0.0, 1, 1.0, 0.0)),
    ],
)
def test_the_layout_follows_what_is_there_and_what_was_asked(
    cpus: float, gpus: float, shards: int, flags: tuple[str | None, float | None, float | None],
    expected: Layout,
) -> None:  # fmt: skip
    assert lay_out(cpus, gpus, shards, WorkerFlags.parse(*flags)) == expected


def test_a_worker_fits_on_a_machine_of_the_cluster() -> None:
    """Two shards on three machines of four CPUs: not six CPUs each, which none of them has."""
    assert lay_out(12, 0, 2, WorkerFlags(), None, 4.0).cpus_per_worker == 4.0
    assert lay_out(12, 0, 2, WorkerFlags()).cpus_per_worker == 6.0


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4 << 30), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("2097152", 2 << 20)],
)
def test_memory_is_set_aside_for_each_worker(text: str, size: int) -> None:
    flags = WorkerFlags.parse(None, memory=text)
    assert flags.memory_per_worker == size
    made = lay_out(16, 0, 100, flags, memory=3.5 * size)
    assert (made.workers, made.memory_per_worker) == (3, size)


@pytest.mark.parametrize("text", ["lots", "4X", "-4G", "100K", "0"])
def test_a_memory_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=f"--memory-per-worker {text}: expected a size"):
        WorkerFlags.parse(None, memory=text)


def test_a_cluster_that_grows_is_used_up_to_the_maximum() -> None:
    flags = WorkerFlags.parse("1:8", 4.0, 1.0)
    begun = lay_out(0, 0, 100, flags)  # --pods 0:8: nothing is there when it begins
    assert (begun.workers, begun.cpus_per_worker, begun.gpus_per_worker) == (1, 4.0, 1.0)
    assert grown(begun, 12, 3, 0, 8).workers == 3
    assert grown(begun, 64, 16, 0, 8).workers == 8
    with_memory = replace(begun, memory_per_worker=4 << 30)
    assert grown(with_memory, 64, 16, float(20 << 30), 8).workers == 5
    assert grown(replace(begun, workers=3), 4, 1, 0, 8).workers == 3  # none is ended for it


def test_a_worker_with_a_gpu_encodes_there() -> None:
    flags = WorkerFlags()
    assert lay_out(8, 2, 10, flags).device == "cuda"
    assert lay_out(8, 0, 10, flags).device == "cpu"


@pytest.mark.parametrize("text", ["0", "-1", "3:2", "a", "1:", ":", "1:x", "2.5"])
def test_workers_that_are_no_range_are_refused(text: str) -> None:
    if text == "1:":
        assert WorkerFlags.parse(text).max_workers == 1
        return
    with pytest.raises(SettingsError, match="expected MIN or MIN:MAX"):
        WorkerFlags.parse(text)


def dispatch(*sizes: int, max_attempts: int = 4) -> Dispatch:
    shards = [(Shard(f"s{n}", "e", size, "tar"), None) for n, size in enumerate(sizes)]
    return Dispatch(shards, run="r", max_attempts=max_attempts, batch_size=256)


def test_large_shards_go_first_and_all_are_handed_out_once() -> None:
    work = dispatch(1, 3, 2)
    sources = []
    while (item := work.next(0.0)) is not None:
        sources.append(item.shard.source)
    assert sources == ["s1", "s2", "s0"]
    assert not work.finished
    for source in sources:
        work.finish(source)
    assert work.finished
    assert work.done == set(sources)


def test_an_attempt_is_a_raised_error_and_comes_back_after_a_pause() -> None:
    work = dispatch(1, max_attempts=3)
    now = 0.0
    for attempt in (1, 2, 3):
        item = work.next(now)
        assert item is not None
        assert item.attempt == attempt
        work.fail("s0", "broken", now)
        assert work.next(now) is None
        now += 60
    assert work.finished
    assert work.failures == {"s0": "broken (3 attempts)"}
    assert work.next(now) is None


def test_deaths_are_no_attempts_but_two_lead_to_quarantine() -> None:
    work = dispatch(1, max_attempts=2)
    sizes = []
    for _ in range(2):
        item = work.next(0.0)
        assert item is not None
        assert not item.quarantine
        sizes.append(item.batch_size)
        work.die("s0", 0.0)
    assert sizes == [256, 128]
    for now, stage, size in ((0.0, 1, 64), (60.0, 2, 32)):
        item = work.next(now)
        assert item is not None
        assert (item.quarantine, item.batch_size) == (stage, size)
        work.die("s0", now)
    assert work.failures == {"s0": "its worker died in quarantine (2 attempts)"}


def test_a_shard_in_quarantine_has_its_worker_for_itself() -> None:
    work = dispatch(2, 1)
    for _ in range(2):
        item = work.next(0.0)
        assert item is not None
        work.die(item.shard.source, 0.0)
    beside = work.next(0.0, beside=True)
    assert beside is not None
    assert beside.shard.source == "s1"
    assert work.next(0.0, beside=True) is None
    alone = work.next(0.0)
    assert alone is not None
    assert (alone.shard.source, alone.quarantine) == ("s0", 1)


def test_one_refused_shard_is_given_up_and_three_in_a_row_end_the_run() -> None:
    work, refused = dispatch(1, 1, 1, 1, 1, 1), Failure("refused", "access denied")
    ends = []
    for number in range(5):
        item = work.next(0.0)
        assert item is not None
        if number == 1:
            work.finish(item.shard.source)
        else:
            ends.append(work.refuse(refused, item.shard.source))
    assert ends == [None, None, None, Failure("fatal", "access denied")]
    assert work.failures == dict.fromkeys(["s0", "s2", "s3", "s4"], "access denied")


def test_for_want_of_memory_the_batch_is_halved_after_a_pause() -> None:
    work = dispatch(1)
    for now, size in ((0.0, 256), (60.0, 128), (120.0, 64)):
        item = work.next(now)
        assert item is not None
        assert (item.batch_size, item.quarantine) == (size, 0)
        work.fail("s0", "no memory", now, smaller=True)
        assert work.next(now + 0.5) is None
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        assert failure_of(error).smaller
    assert not failure_of(RuntimeError("shapes differ")).smaller


def test_what_goes_back_unharmed_is_next_and_never_uses_a_name_twice() -> None:
    work = dispatch(2, 1)
    first = work.next(0.0)
    assert first is not None
    work.give_back("s0")
    again = work.next(0.0)
    assert again is not None
    assert (again.shard.source, again.attempt) == ("s0", 2)
    assert first.attempt == 1


def test_what_another_writer_did_is_not_handed_out() -> None:
    work = dispatch(3, 2, 1)
    work.next(0.0)
    work.drop({"s0", "s2"})
    assert work.pending == 1
    assert work.done == {"s2"}
    work.changed("s0")
    assert work.replan == {"s0"}


@pytest.mark.parametrize(
    ("error", "action", "exit_code"),
    [
        (ObjectChanged("x"), "replan", 1),
        (ObjectMissing("x"), "replan", 1),
        (AccessDenied("x"), "refused", 1),
        (CheckpointError("x"), "fatal", 2),
        (OSError(errno.ENOSPC, "No space left"), "fatal", 1),
        (OSError(errno.EIO, "I/O"), "retry", 1),
        (StorageError("x"), "retry", 1),
        (MemoryError(), "retry", 1),
        (KeyError("x"), "retry", 1),
    ],
)
def test_an_error_means_again_or_otherwise_or_the_end(
    error: Exception, action: str, exit_code: int
) -> None:
    failure = failure_of(error)
    assert (failure.action, failure.exit_code) == (action, exit_code)
    assert failure.message
    assert "\n" not in failure.message


def test_the_ideal_is_set_by_the_scarcest_resource() -> None:
    rates = Rates(0.001, 0.001, 0.002, False, 1e6, 100)
    demand = Demand(num_encoded=1000, in_bytes=100, cores=2, gpus=0, workers=2)
    found = ideal(rates, demand)
    assert (found.ideal_s, found.limit) == (pytest.approx(2.0), "cpu")
    slow = ideal(rates, Demand(1000, 10_000_000, 2, 0, 2))
    assert (slow.ideal_s, slow.limit) == (pytest.approx(5.0), "network")
    on_gpu = Rates(0.001, 0.001, 0.004, True, None, 100)
    assert ideal(on_gpu, Demand(1000, 1, 2, 1, 2)).limit == "gpu"
    assert ideal(on_gpu, Demand(1000, 1, 2, 1, 2)).ideal_s == pytest.approx(4.0)
    assert ideal(on_gpu, Demand(1000, 1, 0.5, 8, 8)).limit == "cpu"


def test_what_each_part_alone_would_do() -> None:
    demand = Demand(num_encoded=1000, in_bytes=10_000_000, cores=2, gpus=0, workers=2)
    found = ideal(Rates(0.001, 0.001, 0.004, False, 1e6, 100), demand)
    assert found.fetch_per_s == pytest.approx(1000 / 5.0)  # 10 MB by two readers of 1 MB/s
    assert found.decode_per_s == pytest.approx(2 / 0.002)
    assert found.model_per_s == pytest.approx(2 / 0.004)
    found = ideal(Rates(0.001, 0.001, 0.004, True, None, 100), Demand(1000, 1, 2, 3, 3))
    assert found.fetch_per_s is None
    assert found.model_per_s == pytest.approx(3 / 0.004)


def test_where_the_time_of_the_cores_went() -> None:
    spent = [{"encode": 1.0, "write": 0.5, "whole": 2.0}, {"encode": 2.0, "whole": 2.5}]
    found = core_us(spent, 1000, 2.0, 4.0)
    assert found is not None
    assert found == pytest.approx({"encode": 3000, "write": 500, "other": 1000, "outside": 3500})
    assert sum(found.values()) == pytest.approx(1e6 * 2.0 * 4.0 / 1000)
    assert core_us(spent, 0, 2.0, 4.0) is None


def test_no_phase_needs_more_than_it_took_in_the_run() -> None:
    rates, seen = Rates(3.0, 5.0, 7.0, False, 8.0, 10), {"decode": 4.0, "encode": 6.0, "write": 1.0}
    assert bounded(rates, seen, True) == Rates(3.0, 5.0, 6.0, False, 8.0, 10)
    assert bounded(rates, seen | {"preprocess": 1.0}, False) == Rates(3.0, 1.0, 7.0, False, 8.0, 10)
    on_gpu = replace(rates, encode_on_gpu=True)
    assert bounded(on_gpu, seen, True) == on_gpu


def test_the_mean_worker() -> None:
    slow, quick = Rates(3.0, 5.0, 7.0, False, None, 10), Rates(1.0, 1.0, 1.0, False, 8.0, 20)
    assert mean([slow, quick]) == Rates(2.0, 3.0, 4.0, False, 8.0, 30)
    assert mean([]) is None


def test_efficiency_is_ideal_over_actual() -> None:
    assert ratio(1.0, 4.0) == 0.25
    assert ratio(None, 4.0) is None
    assert ratio(1.0, 0.0) is None


def test_calibration_takes_turns_and_passes_over_slow_moments() -> None:
    order: list[str] = []
    wall = 0.0
    work = {"decode": itertools.cycle([1.0, 9.0, 1.2, 1.1]), "encode": itertools.cycle([2.0])}

    def act(name: str) -> None:
        nonlocal wall
        order.append(name)
        wall += next(work[name])

    phases = [(lambda name=name: act(name), lambda: wall) for name in work]
    decode_s, encode_s = quartiles(phases, clock=lambda: wall)
    assert order == ["decode", "encode"] * LEAST_PASSES
    assert (decode_s, encode_s) == (pytest.approx(1.1), pytest.approx(2.0))
    order.clear()
    quick = [(lambda: act("encode"), lambda: wall)]
    work["encode"] = itertools.cycle([BUDGET_S / 10])
    quartiles(quick, clock=lambda: wall)
    assert len(order) in (10, 11)  # for the time given, in which sums of tenths may fall short
    order.clear()
    quartiles(quick, BUDGET_S / 2, lambda: wall)
    assert len(order) in (5, 6)
