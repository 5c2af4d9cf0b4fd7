"""Training by two workers of Ray Train: a model as good as one worker's, through deaths."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from eqmodel import Embedder
from eqmodel.errors import Refused
from eqmodel.training import EpochReport, TrainConfig, train
from pipelines.training import read_images
from pipelines.training.workers import Training, train_on_workers
from tests.pipelines.conftest import SAMPLE

pytestmark = [pytest.mark.cluster_slow, pytest.mark.timeout(900)]
SMALL = TrainConfig(width=2, features=6, dim=8, epochs=4, batch_size=64, patience=9)

NOISE = 0.06


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """Progress that nobody looks at."""


def test_two_workers_learn_what_one_learns(tmp_path: Path) -> None:
    config = replace(SMALL, epochs=8)
    images = read_images(str(SAMPLE), tmp_path / "images", silent, limit=800)
    alone: list[EpochReport] = []
    train(images, tmp_path / "one", config, progress=alone.append)
    together: list[EpochReport] = []
    training = Training(str(SAMPLE), tmp_path / "two", config, workers=2, limit=800)
    card = train_on_workers(training, silent, together.append)
    assert [report.epoch for report in together] == list(range(1, 9))
    assert card["num_images"] == 800
    assert card["invariance_error"] <= 1e-5
    one, two = ([report.held_out for report in run] for run in (alone, together))
    assert two[-1] < two[3] < two[0]
    # Four seeds of one worker end at 0.420, 0.420, 0.428 and 0.458 on these images.
    assert abs(two[-1] - one[-1]) < NOISE, (one, two)
    assert Embedder.load(tmp_path / "two").dim == 8
    assert not training.place.exists()


def test_a_killed_worker_costs_an_epoch_at_most(tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    killed: list[int] = []

    def heard(report: EpochReport) -> None:
        reports.append(report)
        if report.epoch == 2 and not killed:
            threading.Thread(target=kill_one, args=(killed,)).start()

    training = Training(str(SAMPLE), tmp_path / "m", SMALL, workers=2, limit=400)
    card = train_on_workers(training, silent, heard)
    assert killed
    epochs = [report.epoch for report in reports]
    assert epochs[-1] == 4
    assert epochs[:2] == [1, 2]
    assert 1 not in epochs[1:], "it began again"
    assert card["epochs"] == 4
    assert Embedder.load(tmp_path / "m").dim == 8


def kill_one(killed: list[int]) -> None:
    """Kill a process that trains: no word, no clean-up."""
    for _ in range(100):
        for process in psutil.Process(os.getpid()).children(recursive=True):
            name = " ".join(safe(process.cmdline))
            if "RayTrainWorker" in name:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return
        time.sleep(0.1)


def safe(call: Any) -> list[str]:
    try:
        found: list[str] = call()
    except psutil.Error:
        return []
    return found


def test_too_few_images_for_so_many_workers_are_refused(tmp_path: Path) -> None:
    training = Training(str(SAMPLE), tmp_path / "m", SMALL, workers=2, limit=40)
    with pytest.raises(Refused, match="expected 32 for each at least"):
        train_on_workers(training, silent, lambda report: None)
    assert not (tmp_path / "m").exists()
