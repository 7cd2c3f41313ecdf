"""A report of a real, tiny run: what is computed for it, and the command."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report.test_report_page import text_of
from run_files import write_run
from run_folders import write_fake_run, write_results

from switchkd import cli
from switchkd.distillation import distill
from switchkd.evaluate.scoring import scored
from switchkd.losses import knee
from switchkd.recipe.schema import load_recipe
from switchkd.report import probe
from switchkd.report.build import report
from switchkd.results import Results
from switchkd.results.intervals import Interval


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_run(folder)
    distill(load_recipe(folder / "recipe.yaml", ["--train.max_steps", "2", "--train.logging_steps", "1"]))
    return folder


@pytest.fixture(scope="module")
def asked(files):
    return probe.read_questions(files / "data" / "test.json")


def copied(files: Path, to: Path) -> Path:
    """The run without its checkpoints, to change things in."""
    shutil.copytree(files / "run", to, ignore=shutil.ignore_patterns("checkpoint-*", "tensorboard"))
    return to


def test_questions_are_of_every_kind_in_turn(asked):
    assert list(asked.questions) == [f"test-{row}/{turn}" for row in range(3) for turn in (1, 2)]
    assert probe.spread(asked.questions, 4) == ["test-0/1", "test-0/2", "test-1/1", "test-1/2"]
    assert probe.spread(asked.questions, 2) == ["test-0/1", "test-0/2"]
    assert probe.spread(asked.questions, 100) == list(asked.questions)
    sample = asked.sample("test-1/2")
    assert [message["role"] for message in sample["messages"]] == ["user", "assistant"]
    assert sample["messages"][1]["content"][0]["text"] == "Yes."


def test_a_run_is_looked_at_through_all_three_pathways(files, asked):
    names = list(asked.questions)
    found = probe.probe(files / "run", asked, names, names[:2])
    assert found.notes == ()
    assert (found.questions, found.window, found.min_k) == (6, 32, 3)
    assert set(found.knees) == {"teacher", "student", "switch"}
    assert {len(values) for values in found.knees.values()} == {found.tokens}
    for near in found.agreement.values():
        assert 0 <= near.same_first_percent <= 100
        assert near.forward_kl_nats > 0
        assert near.reverse_kl_nats > 0
    for maps in found.attention.values():
        assert {who: (len(map_), len(map_[0])) for who, map_ in maps.items()} == dict.fromkeys(
            ("teacher", "student", "switch"), (4, 4)
        )
        assert all(0 < sum(map(sum, map_)) <= 1 for map_ in maps.values())
    # the student's knees, from its own model and nothing of the report's
    pair, collator = probe._open(load_recipe(files / "run" / "recipe.yaml"), files / "run", frozenset({"student"}))
    inputs = collator([asked.sample(name) for name in names]).student
    with torch.no_grad():
        logits = pair.student.logits(pair.student.say(pair.student.see(inputs), inputs))
    ids = len(collator.student.processor.tokenizer)
    assert found.knees["student"] == tuple(knee(logits[:, :ids], window=32, min_k=3).tolist())


def test_a_student_that_is_its_teacher_agrees_with_it(files, asked, tmp_path):
    run = copied(files, tmp_path / "run")
    shutil.rmtree(run / "student")
    shutil.copytree(files / "teacher", run / "student")
    found = probe.probe(run, asked, list(asked.questions), ["test-0/1"])
    for near in found.agreement.values():
        assert near.same_first_percent == 100
        assert near.forward_kl_nats == pytest.approx(0, abs=1e-9)
        assert near.reverse_kl_nats == pytest.approx(0, abs=1e-9)
    assert found.knees["teacher"] == found.knees["student"] == found.knees["switch"]
    maps = found.attention["test-0/1"]
    assert maps["teacher"] == maps["student"] == maps["switch"]


def test_distances_of_two_known_distributions():
    student_x, teacher_x = torch.tensor([[[0.5, 0.5], [0.9, 0.1]], [[0.75, 0.25], [0.2, 0.8]]]).log()
    found = probe._distances(student_x, teacher_x)
    first = [100, 0.75 * torch.log(torch.tensor(1.5)).item() + 0.25 * torch.log(torch.tensor(0.5)).item()]
    assert found[0, :2].tolist() == pytest.approx(first, abs=1e-6)
    assert found[0, 2].item() == pytest.approx(0.5 * torch.log(torch.tensor(4 / 3)).item(), abs=1e-6)
    assert found[1, 0] == 0


def test_what_cannot_be_computed_is_a_note(files, asked, tmp_path):
    names = list(asked.questions)
    run = copied(files, tmp_path / "run")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace(f"{files}/teacher", str(tmp_path / "gone")))
    (note,) = probe.probe(run, asked, names, names[:1]).notes
    assert "models could not be used" in note
    assert "gone" in note
    shutil.rmtree(run / "student")
    (note,) = probe.probe(run, asked, names, names[:1]).notes
    assert note.startswith("student/ was not kept")


def test_a_pair_without_a_switch_is_still_compared(files, asked, monkeypatch):
    real = probe._open

    def unfit(recipe, run, needs):
        if "switch" in needs:
            raise probe._NoSwitchError("the features do not fit")
        return real(recipe, run, needs)

    monkeypatch.setattr(probe, "_open", unfit)
    found = probe.probe(files / "run", asked, list(asked.questions), ["test-0/1"])
    assert found.notes == ("there is no switch: the features do not fit",)
    assert set(found.knees) == set(found.attention["test-0/1"]) == {"teacher", "student"}
    assert set(found.agreement) == {"student"}


@pytest.mark.long
def test_the_command_writes_the_page_and_the_cards(files, tmp_path, capsys):
    runs = tmp_path / "runs"
    for name in ("one", "two"):
        copied(files, runs / name)
    page = tmp_path / "page.html"
    code = cli.main(
        [
            "report",
            str(runs),
            "-o",
            str(page),
            "--questions",
            "4",
            "--attention",
            "1",
            "--show",
            "test-2/1",
            "--baseline",
            "two",
            "--card",
        ]
    )
    assert code == 0, capsys.readouterr().err
    text = text_of(page.read_text())
    assert "of 4 test questions" in text
    assert "What is in the image? →" in text
    assert "They are the same in every field" in text
    assert "one : 0 won, 0 lost of 6 against two" in text
    card = (runs / "one" / "student" / "README.md").read_text()
    assert "| kind | accuracy | points over two |" in card
    assert "| mean of kinds |" in card
    assert card.count("## Results") == 1
    assert "points over" not in (runs / "two" / "student" / "README.md").read_text()


def test_what_the_command_refuses(files, tmp_path, capsys):
    assert cli.main(["report", "-o", str(tmp_path / "x.html")]) == 1
    assert "name at least one run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no test question nothing; the first is test-0/1"):
        report([files / "run"], tmp_path / "x.html", show=["nothing"])
    with pytest.raises(ValueError, match="must not be negative"):
        report([files / "run"], tmp_path / "x.html", questions=-1)
    assert not (tmp_path / "x.html").exists()


def test_answers_are_compared_with_the_teachers(files, tmp_path):
    evidence, _ = report([files / "run"], tmp_path / "a.html", questions=0)
    assert evidence.same_answers == {}
    assert set(evidence.pictures) == set()
    model = evidence.models[0]
    teacher = {name: answer for name, answer in model.answers.items() if answer.kind == "yes_no"}
    assert probe.same_answers(probe.agreeing(model.answers, teacher)) == {None: 100, "yes_no": 100}


def test_shares_of_equal_answers_have_intervals(tmp_path):
    write_results(tmp_path / "t.results.json", "111111", model="teacher")
    write_fake_run(tmp_path / "sft", "000000")
    write_fake_run(tmp_path / "kd", "111101", method="kd")
    evidence, page = report([tmp_path], tmp_path / "page.html", questions=0)
    assert evidence.same_answers["kd"] == {None: pytest.approx(500 / 6), "colour": 100, "count": 100, "shape": 50}
    assert set(evidence.same_intervals) == {"kd"}
    assert evidence.same_intervals["kd"]["count"] == Interval(100, 100)
    assert evidence.same_intervals["kd"]["shape"] == Interval(0, 100)
    assert "kd 83.3 +83.3 [+50.0, +100.0] 100.0 +100.0 [+100.0, +100.0]" in text_of(page.read_text())


def test_intervals_of_equal_answers_are_about_them_and_not_about_right_ones(tmp_path):
    write_results(tmp_path / "t.results.json", "000000", model="teacher")
    write_fake_run(tmp_path / "sft", "111111")
    write_fake_run(tmp_path / "kd", "000000", method="kd")
    for file in (tmp_path / "t.results.json", tmp_path / "sft" / "results.json", tmp_path / "kd" / "results.json"):
        results = Results.load(file)
        replace(results, predictions=tuple(scored(results.predictions, all_there=True))).save(file)
    evidence, _ = report([tmp_path], tmp_path / "page.html", questions=0)
    assert (evidence.same_answers["kd"][None], evidence.same_answers["sft"][None]) == (100, 0)
    assert set(evidence.same_intervals["kd"].values()) == {Interval(100, 100)}


def test_test_data_that_is_gone_is_said_to_be(tmp_path):
    write_results(tmp_path / "alone.json", "100000", data="gone.json")
    evidence, page = report([tmp_path / "alone.json"], tmp_path / "page.html")
    assert evidence.unread is not None
    assert "gone.json: no such file or folder" in text_of(page.read_text())
