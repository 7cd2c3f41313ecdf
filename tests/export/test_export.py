"""`switchkd export`: a model for others."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from run_files import write_model
from safetensors import safe_open
from tiny_models import IMAGE_TOKEN
from transformers import AutoModelForImageTextToText, AutoProcessor

from switchkd.cli import main
from switchkd.export.engines import HUB_LAYERS, LLAMA_CPP, VLLM, check_layout, serving
from switchkd.export.exported_model import export
from switchkd.models.families import FAMILIES

CARD = """---
license: apache-2.0
base_model: [org/student, org/teacher]
datasets: [org/data]
pipeline_tag: image-text-to-text
tags: [switchkd]
model-index:
- name: mine
  results:
  - task: {type: image-text-to-text}
    dataset: {type: d, name: d}
    metrics: [{type: exact_match, value: 50.0}]
---

# A student

| precision of the weights | float32 |
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    write_model(folder / "student", seed=2, tied=True)
    (folder / "student" / "README.md").write_text(CARD)
    (folder / "recipe.yaml").write_text("")
    return folder


def logits(folder, dtype):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
    tokens = torch.arange(IMAGE_TOKEN + 1, 40)[None]
    tokens[tokens == model.config.image_token_id] = 1
    with torch.inference_mode():
        return model(input_ids=tokens).logits


def test_an_export_is_the_same_model_for_plain_transformers(run, tmp_path):
    export(str(run), tmp_path / "out", dtype="bfloat16")
    exported = logits(tmp_path / "out", "auto")
    assert exported.dtype == torch.bfloat16
    assert torch.equal(exported, logits(run / "student", torch.bfloat16))
    assert (exported.float() - logits(run / "student", torch.float32)).abs().mean() < 0.05
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118
        assert not [name for name in file.keys() if "lm_head" in name]  # noqa: SIM118
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["architectures"]) == ("bfloat16", ["LlavaForConditionalGeneration"])
    kept, saved = (AutoProcessor.from_pretrained(folder) for folder in (run / "student", tmp_path / "out"))
    assert saved.tokenizer.get_vocab() == kept.tokenizer.get_vocab()
    wanted = json.loads((run / "student" / "generation_config.json").read_text())
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == wanted


def test_weights_come_in_files_of_a_size_and_the_users_permissions(run, tmp_path, capsys):
    before = os.umask(0o027)
    try:
        assert main(["export", str(run), str(tmp_path / "out"), "--shard", "100KB"]) == 0
    finally:
        os.umask(before)
    files = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 1
    assert f"weights in {len(files)} files" in capsys.readouterr().err
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "out").iterdir()} == {"0o640"}
    assert torch.equal(logits(tmp_path / "out", "auto"), logits(run / "student", torch.float32))


def test_the_card_keeps_what_is_known_and_says_how_it_is_served(run, tmp_path):
    for number, source in enumerate((str(run), str(tmp_path / "0"))):  # an export is exported again
        export(source, tmp_path / str(number), dtype="bfloat16", license_name="mit" if number else None)
        card = ModelCard.load(tmp_path / str(number) / "README.md")
        data = card.data
        assert (data.base_model, data.datasets, data.tags) == (
            ["org/student", "org/teacher"],
            ["org/data"],
            ["switchkd"],
        )
        assert (data.license, data.pipeline_tag) == ("mit" if number else "apache-2.0", "image-text-to-text")
        assert data.eval_results[0].metric_value == 50.0
        assert "| precision of the weights | bfloat16 |" in card.text
        assert card.text.count("## Serving") == 1
        assert f"vllm serve {number}" in card.text


def test_a_model_without_a_card_gets_one_and_the_missing_licence_is_said(run, tmp_path, capsys):
    write_model(tmp_path / "model", seed=2)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    assert "names no licence" in capsys.readouterr().err
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-text-to-text", None)


def test_push_makes_the_repository_first_and_uploads_the_folder(run, tmp_path, monkeypatch, capsys):
    calls = []

    class Hub:
        def create_repo(self, name, *, private, exist_ok):
            calls.append(("create", name, private, (tmp_path / "out").exists()))

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert main(["export", str(run), str(tmp_path / "out"), "--push", "me/mine", "--private"]) == 0
    assert calls[0] == ("create", "me/mine", True, False)
    assert calls[1][:2] == ("upload", "me/mine")
    assert {"README.md", "config.json", "model.safetensors", "chat_template.jinja"} <= set(calls[1][2])


WRONG = {
    "size": (["--shard", "5"], 2, "--shard 5: write a whole number and KB, MB or GB"),
    "repository": (["--push", "mine"], 2, "--push mine: write OWNER/NAME"),
    "private": (["--private"], 2, "--private is for --push"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_exported_is_one_message(run, tmp_path, capsys, case):
    flags, code, message = WRONG[case]
    assert main(["export", str(run), str(tmp_path / "out"), *flags]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_stays_as_it_is(run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    assert main(["export", str(run), str(tmp_path)]) == 1
    assert "already exists: choose another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def change(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


BROKEN = {
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat_template.jinja"),
    "another class": (lambda folder: change(folder / "config.json", architectures=["Llava"]), "names the architectures"),
    "other names": (
        lambda folder: change(folder / "config.json", model_type="qwen2_vl", architectures=["Qwen2VLForConditionalGeneration"]),
        "no tensor begins with visual.blocks.0",
    ),
    "a lost shard": (lambda folder: next(folder.glob("model-*2-of*")).unlink(), "missing files: ['model-"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_layout_that_engines_do_not_read_is_refused(run, tmp_path, case):
    export(str(run), tmp_path / "out", shard="100KB")
    spoil, message = BROKEN[case]
    spoil(tmp_path / "out")
    with pytest.raises(ValueError, match=re.escape(message)):
        check_layout(tmp_path / "out")


def test_the_docs_table_is_what_the_code_knows():
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", text))
    assert set(rows) == set(FAMILIES) == set(HUB_LAYERS)
    for kind, row in rows.items():
        vllm, llama = row.split(" | ")
        assert (kind in VLLM, kind in LLAMA_CPP) == (vllm != "no", llama == "yes")
        told = serving(kind, "out")
        assert [bool(one.commands) for one in told] == [kind in VLLM, kind in LLAMA_CPP]
        assert all(one.commands or one.reason for one in told)
