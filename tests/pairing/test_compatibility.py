"""Which public pairs fit, from their configs: the table of docs/families.md, row by row."""

from pathlib import Path

import pytest
import transformers as hf
from tiny_families import BUILDS

from switchkd.models.capture import Attention, Hidden, Projected, Vision
from switchkd.models.families import family_of
from switchkd.pairing.compatibility import Difference, raise_if_incompatible
from switchkd.pairing.compatibility import compare as compare_families

DOCS = Path(__file__).parents[2] / "docs" / "families.md"


def compare(student, teacher):
    """Of two configs."""
    return compare_families(family_of(student), family_of(teacher))


def llava(vocabulary=32064, **vision):
    return hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            **{"hidden_size": 1024, "image_size": 336, "patch_size": 14, "num_attention_heads": 16} | vision
        ),
        text_config=hf.LlamaConfig(vocab_size=vocabulary),
        vision_feature_select_strategy="default",
    )


def onevision(vocabulary):
    return hf.LlavaOnevisionConfig(text_config=hf.Qwen2Config(vocab_size=vocabulary))


def qwen2_5_vl(vocabulary):
    return hf.Qwen2_5_VLConfig(vision_config={"hidden_size": 1280}, text_config={"vocab_size": vocabulary})


def qwen3_vl(width):
    return hf.Qwen3VLConfig(vision_config={"hidden_size": width})


def smolvlm(width, image, patch, scale):
    return hf.SmolVLMConfig(
        vision_config={"hidden_size": width, "image_size": image, "patch_size": patch, "num_attention_heads": 12},
        text_config=hf.LlamaConfig(vocab_size=49280),
        scale_factor=scale,
    )


def internvl(width):
    vision = {"hidden_size": width, "image_size": [448, 448], "patch_size": [14, 14], "num_attention_heads": 16}
    return hf.InternVLConfig(vision_config=vision, text_config=hf.Qwen2Config(vocab_size=151674))


def gemma3():
    return hf.Gemma3Config(
        vision_config={"hidden_size": 1152, "image_size": 896, "patch_size": 14, "num_attention_heads": 16}
    )


def paligemma(image):
    return hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(hidden_size=1152, image_size=image, patch_size=14, num_attention_heads=16),
        text_config=hf.Gemma2Config(vocab_size=257216),
    )


#: Student and teacher as the table names them → their configs, with the sizes that they were published with.
PUBLIC = {
    "LLaVA-1.5 7B ← 13B": (llava(), llava()),
    "LLaVA-OneVision 0.5B ← 7B": (onevision(152000), onevision(152128)),
    "Qwen2.5-VL 3B ← 7B": (qwen2_5_vl(151936), qwen2_5_vl(152064)),
    "Qwen3-VL 2B ← 4B": (qwen3_vl(1024), qwen3_vl(1024)),
    "Qwen3-VL 4B ← 8B": (qwen3_vl(1024), qwen3_vl(1152)),
    "SmolVLM2 500M ← 2.2B": (smolvlm(768, 512, 16, 4), smolvlm(1152, 384, 14, 3)),
    "InternVL3 8B ← 38B": (internvl(1024), internvl(3200)),
    "Gemma 3 4B ← 27B": (gemma3(), gemma3()),
    "PaliGemma 2 at 224 ← at 448 pixels": (paligemma(224), paligemma(448)),
    "LLaVA-1.5 ← Qwen2.5-VL": (llava(), qwen2_5_vl(152064)),
    "LLaVA-1.5 ← SmolVLM2 2.2B": (llava(), smolvlm(1152, 384, 14, 3)),
}
COLUMNS = {
    "own inputs": "own inputs",
    "bridge": "bridge",
    "vocabulary": "shared ids",
    "refused for the switch": "refused for the switch",
}
#: The tokenizers they were published with, where the two differ.
TOKENIZERS = {"LLaVA-1.5 ← Qwen2.5-VL": "Llama ← Qwen2", "LLaVA-1.5 ← SmolVLM2 2.2B": "Llama ← SmolLM2"}


def table():
    """The rows of the table: pair → column → cell."""
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    head = next(i for i, line in enumerate(lines) if line.startswith("| student ← teacher |"))
    names = [cell.strip() for cell in lines[head].strip("|").split("|")]
    rows = {}
    for line in lines[head + 1 :]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != len(names):
            break
        rows[cells[0]] = dict(zip(names[1:], cells[1:], strict=True))
    return rows


def test_the_table_has_the_public_pairs():
    assert set(table()) == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_table_says_what_the_configs_say(name):
    differences = compare(*PUBLIC[name])
    row = table()[name]
    differing = [difference for difference in differences if difference.verdict != "fits"]
    assert row["fits"] == ("yes" if not differing else "–")
    assert row["tokenizer"] == TOKENIZERS.get(name, "–")
    for column, verdict in COLUMNS.items():
        with_verdict = [difference for difference in differences if difference.verdict == verdict]
        assert (row[column] != "–") == bool(with_verdict), column
        if with_verdict and column in ("bridge", "vocabulary"):  # the numbers too
            first = with_verdict[0]
            cell = row[column].replace(",", "").replace("`", "")
            assert f"{first.student} ← {first.teacher}".replace(",", "") in cell, first


def test_every_column_has_a_pair():
    assert [
        column for column in next(iter(table().values())) if {row[column] for row in table().values()} == {"–"}
    ] == []


def test_tiles_beside_whole_images_are_refused_for_the_switch_alone():
    differences = compare(*PUBLIC["LLaVA-1.5 ← SmolVLM2 2.2B"])
    raise_if_incompatible(differences, set(), bridge=False)
    with pytest.raises(ValueError, match=r"differ in images: whole and cut into tiles .*set the method's switch to 0"):
        raise_if_incompatible(differences, {"switch"}, bridge=True)


def test_what_is_refused_is_refused_without_the_switch_too():
    with pytest.raises(ValueError, match=r"a and b differ in tokenizer: 3 tokens and 4 tokens \(unreadable\): choose"):
        raise_if_incompatible(
            [Difference("tokenizer", "3 tokens", "4 tokens", "refused", "unreadable")],
            set(),
            bridge=True,
            pair="a and b",
        )


def test_a_bridge_is_asked_for_where_the_switch_needs_one():
    differences = compare(llava(hidden_size=768), llava())
    raise_if_incompatible(differences, {"switch"}, bridge=True)
    raise_if_incompatible(differences, set(), bridge=False)
    with pytest.raises(
        ValueError, match=r"feature width: 768 and 1024 .*give the pair a bridge .*`pair: \{bridge: auto\}`"
    ):
        raise_if_incompatible(differences, {"switch"}, bridge=False)


#: A place inside both models → the sizes of which one must differ for a refusal.
SITES = {
    Projected(): ({"patch_size": 28}, "visual tokens per image: 144 and 576"),
    Hidden(0.5, "visual"): ({"patch_size": 28}, "visual tokens per image: 144 and 576"),
    Attention(0.5, "answers", "visual"): ({"patch_size": 28}, "visual tokens per image: 144 and 576"),
}


@pytest.mark.parametrize("site", SITES, ids=str)
def test_what_is_compared_one_by_one_must_agree(site):
    sizes, message = SITES[site]
    raise_if_incompatible(compare(llava(), llava()), {site}, bridge=True)
    with pytest.raises(ValueError, match=rf"differ in {message}, and the method compares .* one by one") as error:
        raise_if_incompatible(compare(llava(**sizes), llava()), {site}, bridge=True)
    assert str(site) in str(error.value)


def test_what_is_seen_is_compared_over_a_bridge_where_it_differs():
    differences = compare(llava(hidden_size=768, patch_size=28), llava())
    raise_if_incompatible(differences, {Vision()}, bridge=True)
    with pytest.raises(
        ValueError, match=r"feature width: 768 and 1024 .*or choose a method that does not compare them"
    ):
        raise_if_incompatible(differences, {Vision()}, bridge=False)
    with pytest.raises(ValueError, match=r"images: whole and cut into tiles .*choose a method that does not compare"):
        raise_if_incompatible(compare(llava(), onevision(152000)), {Vision()}, bridge=True)


def test_text_is_compared_only_with_one_tokenizer_and_one_template():
    for what in ("tokenizer", "chat template"):
        other = Difference(what, "its own", "its own", "aligned")
        raise_if_incompatible([other], {Hidden(at="visual"), Projected(), Vision()}, bridge=True)
        for site in (Hidden(at="text"), Attention(of="text", to="visual")):
            with pytest.raises(ValueError, match=f"differ in {what}: its own and its own, and the method compares"):
                raise_if_incompatible([other], {site}, bridge=True)


def test_equal_encoders_are_remarked():
    one = {difference.what: difference for difference in compare(gemma3(), gemma3())}
    assert "z_SW = z_T" in one["layers of the vision encoder"].detail
    other = {difference.what: difference for difference in compare(qwen3_vl(1024), qwen3_vl(1152))}
    assert other["layers of the vision encoder"].detail == ""


@pytest.mark.parametrize("name", BUILDS)
def test_every_family_fits_itself(name):
    config = BUILDS[name].config
    differences = compare(config(16, 1), config(24, 3))
    assert [difference for difference in differences if difference.verdict != "fits"] == []


def test_differences_say_both_values():
    said = [str(difference) for difference in compare(llava(hidden_size=768), llava())]
    assert "feature width: 768 and 1024 (translated by a linear layer)" in said
    assert "family: llava" in said


def test_a_family_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="model_type 'clip' is not supported yet"):
        compare(hf.CLIPConfig(), llava())
