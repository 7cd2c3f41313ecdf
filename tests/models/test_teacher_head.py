"""The head of a model, read without the model."""

import json

import pytest
import torch
from tiny_families import BUILDS, tiny
from tiny_models import tiny_llava

from switchkd.models import load_pathway
from switchkd.models.teacher_head import load_head


@pytest.mark.parametrize("name", BUILDS)
def test_of_every_family_it_is_the_models_own_and_nothing_else_is_read(name, tmp_path, monkeypatch):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    read = []
    monkeypatch.setattr("switchkd.models.teacher_head._read", noting(read))
    head = load_head(tmp_path)
    own = load_pathway(model).head
    assert torch.equal(head.head.weight, own.weight)
    assert head.head.softcap == own.softcap
    assert (head.head.bias is None) == (own.bias is None)
    assert read == [head.weight.numel()]
    assert [(p.numel(), p.requires_grad) for p in head.parameters()] == [(own.weight.numel(), False)]


def noting(read):
    from switchkd.models import teacher_head

    plain = teacher_head._read

    def reading(*given):
        tensor = plain(*given)
        read.append(tensor.numel())
        return tensor

    return reading


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_found_among_shards_and_in_the_precision_asked_for(tied, tmp_path):
    model = tiny_llava(tied=tied)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    head = load_head(tmp_path, dtype="bfloat16").head.weight
    assert torch.equal(head, model.get_output_embeddings().weight.bfloat16())


def test_a_head_that_is_not_there_or_of_another_size_is_refused(tmp_path):
    tiny_llava(tied=True).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"hold no lm_head\.weight, and config\.json does not tie it"):
        load_head(tmp_path)
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    config["text_config"]["vocab_size"] = 100
    file.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"the head has the shape \[96, 24\] in the weights, and \[100, 24\] by config"
    ):
        load_head(tmp_path)
