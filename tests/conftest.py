"""Every test runs with the shapes in our signatures checked at each call."""

from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch

# Before the first import of switchkd: only modules imported after this line are checked.
jaxtyping.install_import_hook("switchkd", "typechecker.checked")

# The models here are tiny: threads would cost more than they bring, and one thread makes sums repeat.
torch.set_num_threads(1)


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
