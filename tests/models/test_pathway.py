"""A pathway is the plain model, cut in three: every logit at the answer positions must be the same."""

import pytest
import torch
from pairs import own_logits
from tiny_models import BUILDS, IMAGE_TOKEN, plain_logits, tiny_inputs, tiny_llava
from transformers import CLIPConfig, GPT2Config, LlavaConfig

from switchkd.models import Pathway, load_pathway
from switchkd.models.families import family_of


@pytest.mark.parametrize(("vision", "language"), BUILDS)
@pytest.mark.parametrize("images", [(1, 2, 0), (1, 1), (0, 0)], ids=str)
def test_logits_are_those_of_the_plain_model(vision, language, images):
    """Though the plain model is given a mask for its padding, and the pathway none."""
    model, inputs = tiny_llava(vision, language), tiny_inputs(images=images)
    assert not inputs.is_text().all()
    logits = own_logits(load_pathway(model), inputs)
    assert logits.shape[0] == sum(3 + sample + 2 for sample in range(len(images)))
    torch.testing.assert_close(logits, plain_logits(model, inputs), rtol=0, atol=1e-5)


def test_cross_entropy_of_the_pathway_is_the_loss_of_the_plain_model():
    """Which shifts labels against logits itself."""
    model, inputs = tiny_llava(), tiny_inputs()
    labels = torch.full_like(inputs.tokens, -100)
    labels.flatten()[inputs.predicts + 1] = inputs.targets
    assert torch.equal(labels[labels != -100], inputs.tokens[labels != -100])
    plain = model(
        input_ids=inputs.tokens, attention_mask=inputs.is_text().long(), labels=labels, **inputs.media["image"]
    )
    loss = torch.nn.functional.cross_entropy(own_logits(Pathway(model), inputs), inputs.targets)
    torch.testing.assert_close(loss, plain.loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "layer", "tokens", "width"), [("full", -2, 4, 32), ("default", -1, 3, 32), ("full", [1, -2], 4, 64)]
)
def test_features_are_what_the_projector_receives(strategy, layer, tokens, width):
    model = tiny_llava("siglip")
    config = LlavaConfig(
        **{**model.config.to_dict(), "vision_feature_select_strategy": strategy, "vision_feature_layer": layer}
    )
    model = type(model)(config).eval()
    received = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    inputs = tiny_inputs(images=(1, 1))
    model.model.get_image_features(inputs.images["pixel_values"])
    pathway = Pathway(model)
    features = pathway.see(inputs)
    assert features.shape == (2, tokens, width)
    assert torch.equal(features, received[0])
    geometry = pathway.family.geometry
    assert (geometry.tokens_per_image, geometry.feature_width) == (tokens, width)


def test_train_only_freezes_the_rest():
    pathway = Pathway(tiny_llava())
    pathway.train_only(("projector",))
    trained = {name.split(".")[1] for name, p in pathway.model.named_parameters() if p.requires_grad}
    assert trained == {"multi_modal_projector"}
    with pytest.raises(ValueError, match=r"unknown parts \['tower'\]; a model has vision, projector, language"):
        pathway.train_only(("tower",))


def test_an_unknown_family_names_the_file_to_write():
    with pytest.raises(ValueError, match=r"'gpt2' is not supported yet \(supported: gemma3, .*families/gpt2\.py"):
        family_of(GPT2Config())


def test_an_untested_member_of_a_family_is_refused():
    model = tiny_llava()
    model.config.text_config = GPT2Config()
    with pytest.raises(ValueError, match="language model 'gpt2' has not been tested; supported: llama, qwen2"):
        Pathway(model)
    model.config.vision_config = CLIPConfig()
    with pytest.raises(ValueError, match="vision encoder 'clip' has not been tested"):
        Pathway(model)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    model = tiny_llava()
    state = model.state_dict()
    del state["model.vision_tower.embeddings.patch_embedding.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"1 missing keys for a llava, .*patch_embedding.weight first"):
        load_pathway(tmp_path)


def test_load_from_a_directory_gives_the_same_pathway(tmp_path):
    model, inputs = tiny_llava(), tiny_inputs()
    model.save_pretrained(tmp_path)
    there, here = load_pathway(tmp_path), load_pathway(model)
    assert torch.equal(own_logits(there, inputs), own_logits(here, inputs))
    assert there.model.config.image_token_id == IMAGE_TOKEN


def test_the_attention_asked_for_is_the_one_that_runs(tmp_path):
    model, inputs = tiny_llava(), tiny_inputs()
    model.save_pretrained(tmp_path)
    said = {}
    for asked, expected in (("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")):
        pathway = load_pathway(tmp_path, attn_implementation=asked)
        for part in ("vision_config", "text_config"):
            assert getattr(pathway.model.config, part)._attn_implementation == expected
        said[asked] = own_logits(pathway, inputs)
    assert torch.equal(said["auto"], said["sdpa"])
    torch.testing.assert_close(said["eager"], said["sdpa"], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="flash_attention_2, which needs a CUDA GPU and the package flash-attn"):
        load_pathway(tmp_path, attn_implementation="flash_attention_2")
