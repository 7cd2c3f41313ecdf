"""Every test runs with the shapes in our signatures checked at each call, and without a GPU unless it means one."""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jaxtyping
import offline
import pytest
from typechecker import check_shapes

# Before torch is imported: a GPU is hidden from tests that mean the CPU.
if os.environ.get("SWITCHKD_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Before their libraries are imported: no hub is asked, here and in what tests start. `offline` refuses what asks all the same.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

gc.disable()  # until everything is imported: see `pytest_collection_finish`

import torch  # noqa: E402

# Before the first import of switchkd: only modules imported after this line are checked.
check_shapes("switchkd")

# A cache of its own for each session, also in the processes that tests start: nothing is written to the home folder.
_CACHE = tempfile.TemporaryDirectory(prefix="switchkd-cache-")
os.environ["SWITCHKD_CACHE"] = _CACHE.name

offline.guard()

# The models here are tiny: threads would cost more than they bring. OMP_NUM_THREADS=2 tries what several threads change in sums.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# Under nohup and in the background of a shell signals are ignored, here and in what tests start; tests of signals mean them.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none to use."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="means a GPU: run `make test-gpu` on a machine with one")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Leave what has been imported out of every search for garbage.

    The Trainer searches at each start. Among the millions of objects of torch and transformers that took more time than its steps.
    And let the doctor, where a test has imported it, make each estimate of memory once.
    """
    if "switchkd.doctor.check_memory" in sys.modules:
        from estimates import made_once

        from switchkd.doctor import check_memory

        check_memory.estimate = made_once(check_memory.estimate)
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let what was left out go at the end, as it goes without tests."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def stays_on_this_machine() -> Iterator[None]:
    """A test that tries to reach the network fails, whatever its code makes of the refusal."""
    yield
    offline.fail_if_tried()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, for tests that are marked `browser`; `browser.visit` opens pages in it."""
    from browser import running  # playwright takes a second that few tests need

    with running() as chromium:
        yield chromium


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Shape checks off, as users run: for tests of the messages that our own validation raises."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
