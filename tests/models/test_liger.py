"""Which kernels are put where, with a stand-in for Liger; what they leave alone; and what is refused."""

import importlib.util
import logging
import sys
from types import FunctionType, MethodType, ModuleType

import pytest
import torch
from tiny_families import inputs_for, tiny
from tiny_models import tiny_llava
from transformers import Qwen2Config, Qwen2Model
from transformers.models.qwen2 import modeling_qwen2

from switchkd.models import Pathway
from switchkd.models.liger import has_kernels, use_kernels

IDS = torch.arange(6)[None]


def bind(norm, eps, kind):
    """As Liger does: a forward of one module, and of no class."""
    plain = norm.forward
    norm.forward = MethodType(lambda self, x: plain(x), norm)
    norm.variance_epsilon, norm.kind = eps, kind


class Norm(modeling_qwen2.Qwen2RMSNorm):
    """Of a class that later models would be made of."""


@pytest.fixture
def liger(monkeypatch):
    """Liger with kernels for qwen2 alone, on a GPU that is not there: it changes what the real one does. Holds what it was applied to."""
    applied, turned = [], []
    plain = modeling_qwen2.apply_rotary_pos_emb

    def rotary(q, k, cos, sin, **_):
        turned.append(q.shape)
        return plain(q, k, cos, sin)

    def apply(*, model, rope, **layers):
        applied.append((model, {"rope": rope} | layers))
        if rope:
            modeling_qwen2.apply_rotary_pos_emb = rotary
        modeling_qwen2.Qwen2RMSNorm = Norm
        modeling_qwen2.a_new_name = rotary
        model.norm.patched = True

    patches = ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen2": None}
    patches._apply_liger_kernel_to_instance = apply
    patches._patch_layer_norm_module = lambda norm, eps: bind(norm, eps, "layer norm")
    patches._patch_rms_norm_module = lambda norm: bind(norm, norm.variance_epsilon, "rms norm")
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, patches.__name__, patches)
    monkeypatch.setattr("switchkd.models.liger.device_of", lambda pathway: "cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    yield applied, turned
    assert modeling_qwen2.apply_rotary_pos_emb is plain


def language_of(pathway):
    return pathway.model.model.language_model


def wide_heads(monkeypatch):
    monkeypatch.setattr("switchkd.models.liger.LEAST_HEAD", 2)


@pytest.mark.parametrize("kernels", ["auto", "liger"])
def test_the_language_model_gets_layers_and_no_loss(liger, kernels, monkeypatch):
    wide_heads(monkeypatch)
    pathway = Pathway(tiny_llava(language="qwen2"))
    use_kernels(pathway, kernels)
    (((model, layers),), _) = liger
    assert model is language_of(pathway)
    assert {name for name, wanted in layers.items() if wanted} == {"rope", "rms_norm", "swiglu"}
    assert {name for name, wanted in layers.items() if not wanted} == {"cross_entropy", "fused_linear_cross_entropy"}


def test_no_other_model_of_the_process_changes(liger, monkeypatch):
    """Neither one that was there before, nor one made later; and this one computes what it computed."""
    wide_heads(monkeypatch)
    before, pathway = tiny_llava(language="qwen2"), Pathway(tiny_llava(language="qwen2"))
    names, norm = dict(vars(modeling_qwen2)), modeling_qwen2.Qwen2RMSNorm
    expected = language_of(pathway)(IDS).last_hidden_state
    use_kernels(pathway, "auto")
    assert dict(vars(modeling_qwen2)) == names
    _, turned = liger
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    later = Qwen2Model(Qwen2Config(vocab_size=50, num_key_value_heads=2, **sizes))
    assert type(later.norm) is norm
    for other in (before.model.language_model, later):
        other(IDS)
        assert turned == []
        assert not hasattr(other.norm, "patched")
    assert torch.equal(language_of(pathway)(IDS).last_hidden_state, expected)
    assert len(turned) == language_of(pathway).config.num_hidden_layers


def test_narrow_heads_keep_their_rotary_embeddings(liger, caplog):
    pathway = Pathway(tiny_llava(language="qwen2"))
    with caplog.at_level(logging.INFO, "switchkd"):
        use_kernels(pathway, "auto")
    (((_, layers),), turned) = liger
    assert layers["rope"] is False
    assert caplog.messages == [
        "norms and SwiGLU (its heads are too narrow for rotary) of qwen2 are Liger's",
        "norms of the vision encoder siglip_vision_model are torch's: the narrowest is 32 wide, and 64 is the least",
    ]
    language_of(pathway)(IDS)
    assert turned == []


def test_a_language_model_without_kernels_is_left_alone_or_refused(liger, caplog):
    with pytest.raises(ValueError, match="liger has no kernels for the language model 'llama'"):
        use_kernels(Pathway(tiny_llava(language="llama")), "liger")
    with caplog.at_level(logging.INFO, "switchkd"):
        use_kernels(Pathway(tiny_llava(language="llama")), "auto")
    assert caplog.messages == [
        "norms, SwiGLU and rotary embeddings of llama are torch's: Liger has no kernels for the language model 'llama'"
    ]
    assert liger == ([], [])


@pytest.mark.parametrize("missing", ["triton", "liger_kernel"])
def test_a_missing_package_is_named(liger, missing, monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == missing else package)
    with pytest.raises(ValueError, match=f"needs the package {missing}, which is not installed"):
        use_kernels(Pathway(tiny_llava()), "liger")
    with caplog.at_level(logging.INFO, "switchkd"):
        use_kernels(Pathway(tiny_llava()), "auto")
    assert f"needs the package {missing}" in caplog.text
    assert liger == ([], [])


def test_none_asks_for_nothing(liger, caplog):
    with caplog.at_level(logging.INFO, "switchkd"):
        use_kernels(Pathway(tiny_llava(language="qwen2")), "none")
    assert caplog.messages == []
    assert liger == ([], [])


def test_without_a_gpu_it_is_refused_and_auto_is_silent(caplog):
    with pytest.raises(ValueError, match="kernels: liger needs a CUDA GPU, and this model is on cpu"):
        use_kernels(Pathway(tiny_llava()), "liger")
    with caplog.at_level(logging.INFO, "switchkd"):
        use_kernels(Pathway(tiny_llava()), "auto")
    assert caplog.messages == []


@pytest.mark.parametrize(("name", "kind"), [("llava-siglip-qwen2", "layer norm"), ("qwen2_5_vl", "rms norm")])
def test_the_norms_of_a_vision_encoder_are_ligers_and_those_of_other_models_are_not(
    liger, monkeypatch, caplog, name, kind
):
    monkeypatch.setattr("switchkd.models.liger.LEAST_WIDTH", 2)
    monkeypatch.setattr("switchkd.models.liger._why_not", lambda *_: None)
    monkeypatch.setattr("switchkd.models.liger._patch", lambda model, rotary: None)
    other, pathway = Pathway(tiny(name)), Pathway(tiny(name))
    pixels = inputs_for(name)
    expected = other.see(pixels)
    with caplog.at_level(logging.INFO, "switchkd"):
        use_kernels(pathway, "auto")
    kinds = [vars(module).get("kind") for part in pathway.part("vision") for module in part.modules()]
    assert kinds.count(kind) >= 6
    assert f"are Liger's ({kinds.count(kind)} of them), its GELU is torch's" in caplog.text
    assert not any("kind" in vars(module) for module in other.model.modules())
    outside = [module for part in ("projector", "language") for top in pathway.part(part) for module in top.modules()]
    assert not any("kind" in vars(module) for module in outside)
    assert torch.equal(pathway.see(pixels), expected)


def test_a_model_with_kernels_is_known():
    pathway = Pathway(tiny_llava())
    assert not has_kernels(pathway.model)
    forward = FunctionType(
        (lambda self, x: x).__code__, {"__name__": "liger_kernel.transformers.layer_norm"}, "forward"
    )
    norm = pathway.model.model.language_model.norm
    norm.forward = MethodType(forward, norm)
    assert has_kernels(pathway.model)
