"""Which kernels are put where, with a stand-in for Liger; and what is refused."""

import importlib.util
import sys
from types import ModuleType

import pytest
from tiny_models import tiny_llava

from switchkd.models import Pathway
from switchkd.models.liger import use_liger


@pytest.fixture
def liger(monkeypatch):
    """Liger with kernels for qwen2 alone, on a GPU that is not there; holds what it was applied to."""
    applied = []
    patches = ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen2": None}
    patches._apply_liger_kernel_to_instance = lambda *, model, **kernels: applied.append((model, kernels))
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, patches.__name__, patches)
    monkeypatch.setattr("switchkd.models.liger.device_of", lambda pathway: "cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    return applied


def test_the_language_model_gets_layers_and_no_loss(liger):
    pathway = Pathway(tiny_llava(language="qwen2"))
    use_liger(pathway)
    ((model, kernels),) = liger
    assert model is pathway.model.model.language_model
    assert {name for name, wanted in kernels.items() if wanted} == {"rope", "rms_norm", "swiglu"}
    assert {name for name, wanted in kernels.items() if not wanted} == {"cross_entropy", "fused_linear_cross_entropy"}


def test_a_language_model_without_kernels_is_refused(liger):
    with pytest.raises(ValueError, match="Liger has no kernels for the language model 'llama'"):
        use_liger(Pathway(tiny_llava(language="llama")))
    assert not liger


@pytest.mark.parametrize("missing", ["triton", "liger_kernel"])
def test_a_missing_package_is_named(liger, missing, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == missing else package)
    with pytest.raises(ValueError, match=f"needs the package {missing}, which is not installed"):
        use_liger(Pathway(tiny_llava()))
    assert not liger


def test_without_a_gpu_it_is_refused():
    with pytest.raises(ValueError, match="liger_kernel needs a CUDA GPU, and this model is on cpu"):
        use_liger(Pathway(tiny_llava()))
