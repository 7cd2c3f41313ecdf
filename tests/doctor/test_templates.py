"""The doctor, before and in a training, says which chat template is in use."""

import pytest
from run_files import write_run
from tiny import tiny_processor

from switchkd import distill
from switchkd.data.template_choice import choose_format
from switchkd.doctor import examine_pair
from switchkd.doctor.check_templates import template
from switchkd.models.families.chat_blocks import CHATML
from switchkd.recipe.schema import load_recipe

#: Closes no answer that an image's question had: what it cannot write is said.
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}{% endfor %}"
    + CHATML
)


def templates_of(findings):
    return {f.check: (f.level, f.detail) for f in findings.lines if f.check.endswith("chat template")}


def test_a_checkpoints_own_template_is_fine_and_what_it_cannot_write_is_said():
    level, detail = (lambda f: (f.level, f.detail))(template(choose_format(tiny_processor()), "student"))
    assert level == "ok"
    assert "own" in detail
    assert "cannot write" not in detail
    told = template(choose_format(tiny_processor(NO_SYSTEM)), "teacher")
    assert (told.level, told.check) == ("ok", "teacher's chat template")
    assert "It cannot write" in told.detail
    assert "no system here" in told.detail


@pytest.mark.long
def test_a_template_that_stands_in_is_a_warning_of_the_pair_and_on_the_card(tmp_path, capsys):
    recipe = write_run(tmp_path)
    (tmp_path / "student" / "chat_template.jinja").unlink()
    findings, _ = examine_pair(str(tmp_path / "student"), str(tmp_path / "teacher"))
    found = templates_of(findings)
    assert found["student's chat template"][0] == "warning"
    assert found["student's chat template"][1].startswith("ChatML, in place of the checkpoint's own (it has none); ")
    assert found["teacher's chat template"][0] == "ok"
    text = recipe.read_text()
    recipe.write_text(text[: text.index("evaluate:")])
    distill(load_recipe(recipe, ["--train.max_steps", "1"]))
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "| chat template | " in card
    assert "ChatML, in place of the checkpoint's own (it has none)" in card


def test_a_template_that_a_recipe_names_is_said(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML.replace("<|im_start|>", "<|im_start|>\n"))
    told = template(choose_format(tiny_processor(), str(file)), "student")
    assert told.level == "warning"
    assert told.detail.startswith(f"{file}, in place of the checkpoint's own (data.template names it); ")
