import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny import IMAGE_SIZE, tiny_processor
from tiny_models import tiny_llava

from switchkd import cli
from switchkd.commands.evaluate import Evaluate
from switchkd.commands.train import Train
from switchkd.interrupts import Interrupted
from switchkd.recipe.schema import load_recipe
from switchkd.versions import __version__
from switchkd.world import student_path, teacher_path

RECIPES = Path(__file__).parents[1] / "recipes"
TINY = str(RECIPES / "tiny.yaml")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A tiny model and its processor in a directory, as a finished training leaves them."""
    directory = tmp_path_factory.mktemp("student")
    processor = tiny_processor()
    model = tiny_llava(vocabulary=len(processor.tokenizer), image_size=IMAGE_SIZE)
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture
def data(tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "0.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A circle."}]
    (tmp_path / "test.json").write_text(
        json.dumps([{"id": "a", "image": "0.png", "conversations": turns, "kind": "shape"}])
    )
    return tmp_path / "test.json"


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The installed command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "switchkd.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "verb",
    ["demo", "train", "cache", "evaluate", "chat", "doctor", "init", "convert", "models", "recipe", "export", "env"],
)
def test_the_help_of_every_verb_shows_an_example(verb, capsys):
    assert run(verb, "--help") == 0
    assert f"Example: switchkd {verb}" in capsys.readouterr().out


def test_the_example_of_train_can_be_run_beside_the_demo():
    (example,) = re.findall(r"Example: switchkd train (.*)", Train.__doc__)
    recipe = load_recipe(Path(TINY), cli.split_fields(example.split())[1])
    assert example.split()[0] == "recipes/tiny.yaml"
    assert recipe.train.output != load_recipe(Path(TINY)).train.output
    assert recipe != load_recipe(Path(TINY))


WRONG = {
    "nothing": ([], 2, ["Missing subcommand", "demo, train, evaluate, report, chat, doctor, study,"]),
    "a verb": (["trian", TINY], 2, ["no command trian", "did you mean `train`"]),
    "a flag of a verb": (["train", TINY, "--dry-rn"], 2, ["--dry-rn", "--dry-run"]),
    "a value of a flag": (["evaluate", "a", "b", "--batch-size", "x"], 2, ["--batch-size", "'x'"]),
    "no recipe": (["train"], 2, ["RECIPE.yaml"]),
    "a recipe that is not there": (
        ["train", TINY.replace("tiny.yaml", "tniy.yaml")],
        2,
        ["no such file", "did you mean `tiny.yaml`"],
    ),
    "a field": (["train", TINY, "--train.sed", "1"], 2, ["--train.sed", "did you mean `seed`"]),
    "a field for the doctor": (["doctor", TINY, "--trian.seed", "1"], 2, ["--trian.seed", "did you mean `train`"]),
    "a field's value": (["train", TINY, "--dry-run", "--train.max_steps", "0"], 2, ["--train.max_steps", "got 0"]),
    "a doctor without a patient": (
        ["doctor", "--teacher", "t"],
        2,
        ["doctor takes a recipe, or --teacher and --student"],
    ),
    "a doctor with two": (["doctor", TINY, "--teacher", "t"], 2, ["doctor takes a recipe, or --teacher and --student"]),
    "a field for another verb": (
        ["models", "--train.seed", "1"],
        2,
        ["--train.seed", "only train, cache, doctor and study"],
    ),
    "no such data": (["evaluate", "a/b/c", "nowhere.json"], 1, ["nowhere.json: no such file"]),
    "no such model": (["chat", "no/such/folder"], 1, ["no/such/folder: no such folder"]),
    "no such picture": (["chat", "some/model", "--image", "no.png"], 1, ["no.png: no such file"]),
    "no such model on the page": (["chat", "--web", "a=no/such/folder"], 1, ["no/such/folder: no such folder"]),
    "an answer of no token": (
        ["chat", "some/model", "--max-new-tokens", "0"],
        2,
        ["--max-new-tokens", "at least 1, got 0"],
    ),
    "less than no token": (
        ["chat", "--web", "m", "--max-new-tokens", "-3"],
        2,
        ["--max-new-tokens", "at least 1, got -3"],
    ),
    "two models of one name": (["chat", "--web", "a=b", "a=c"], 1, ["two models are called 'a'"]),
    "no such model to ask": (["evaluate", "nowhere", TINY], 1, ["nowhere: no such folder"]),
    "a folder that is no model": (["evaluate", str(RECIPES), TINY], 1, ["has no config.json"]),
    "a benchmark": (["evaluate", "some/model", "--benchmarks", "mne"], 1, ["there is no benchmark 'mne'"]),
    "no such benchmarks": (
        ["evaluate", "some/model", "--benchmarks", "mme", "--data", "no/folder"],
        1,
        ["no/folder: no such file or folder"],
    ),
    "no such pair": (["doctor", "--student", "no/such/a", "--teacher", "no/such/b"], 1, ["no/such/a: no such folder"]),
    "no such checkpoint": (["convert", "no/such/folder", "out"], 1, ["no/such/folder: no such folder"]),
    "no such teacher": (["init", "out", "--from-teacher", "no/such/folder"], 1, ["no/such/folder: no such folder"]),
    "no such data to look at": (["data", "check", "nowhere.json"], 1, ["nowhere.json: no such file or folder"]),
    "no such data to convert": (["data", "convert", "nowhere.json", "o.jsonl"], 1, ["nowhere.json: no such file"]),
    "a recipe of no model": (["recipe", "no/such/a", "no/such/b", TINY], 1, ["no/such/b: no such folder"]),
    "a recipe without data": (["recipe", "a/b", "c/d", "nowhere.json"], 1, ["nowhere.json: no such file or folder"]),
    "a shipped recipe": (["recipe", "tniy"], 2, ["there is no recipe tniy", "did you mean `tiny`"]),
    "two names for a recipe": (["recipe", "a/b", "c/d"], 2, ["TEACHER STUDENT DATA", "not 2 names"]),
    "an option of recipe": (["recipe", "--lst"], 2, ["--lst", "--list"]),
    "JSON of a recipe": (["recipe", "tiny", "--json"], 2, ["--json is for --list"]),
    "nothing to export": (["export", "no/such/folder", "out"], 1, ["no/such/folder: no such folder"]),
    "a folder that is no model to export": (["export", str(RECIPES), "out"], 1, ["has no config.json"]),
    "an export over a folder": (["export", "some/model", str(RECIPES)], 1, ["already exists: choose another folder"]),
    "a size of files": (["export", "some/model", "out", "--shard", "5"], 2, ["--shard 5", "KB, MB or GB"]),
    "a precision of an export": (["export", "some/model", "out", "--dtype", "bf16"], 2, ["--dtype", "bfloat16"]),
    "a repository": (["export", "some/model", "out", "--push", "mine"], 2, ["--push mine", "OWNER/NAME"]),
    "an option of env": (["env", "--jsn"], 2, ["--jsn", "--json"]),
    "no such run": (["report", "nowhere"], 1, ["nowhere: no such file or folder"]),
    "no such study": (["study", "nowhere.yaml"], 2, ["nowhere.yaml: no such file"]),
    "a method": (["train", TINY, "--method.name", "swich_kd"], 2, ["did you mean `switch_kd`"]),
    "a field of a method": (["train", TINY, "--method.temprature", "2"], 2, ["did you mean `temperature`"]),
    "a value of a method": (["train", TINY, "--method.temperature", "0"], 2, ["temperature must be positive"]),
    "a tracker": (["train", TINY, "--train.report-to", "wandbb"], 2, ["did you mean `wandb`"]),
    "no such training data": (
        ["train", TINY, "--evaluate.data", TINY, "--data.train", "nowhere.json"],
        1,
        ["no such file or folder"],
    ),
    "no such student": (
        ["train", TINY, "--evaluate.data", TINY, "--data.train", TINY, "--student.path", "no/such/folder"],
        1,
        ["no/such/folder: no such folder"],
    ),
    "no such student for the doctor": (
        ["doctor", TINY, "--data.train", TINY, "--evaluate.data", TINY, "--student.path", "no/such/folder"],
        1,
        ["can be opened", "no/such/folder: no such folder"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_gets_one_clear_message_and_an_exit_code(case, capsys):
    arguments, code, phrases = WRONG[case]
    assert run(*arguments) == code
    printed = capsys.readouterr()
    assert [phrase for phrase in phrases if phrase not in printed.err] == [], printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


#: What takes seconds to import, or is not needed by everybody.
SLOW = {
    "accelerate", "bitsandbytes", "datasets", "gradio", "jaxtyping", "lmms_eval", "matplotlib", "numpy", "pandas", "peft", "plotly",
    "pyarrow", "scipy", "sklearn", "tensorboard", "torch", "torchvision", "transformers",
}  # fmt: skip


@pytest.mark.long
def test_what_is_wrong_is_told_before_a_model_library_is_imported():
    """In one process, which none of them makes slow for the others."""
    cases = {"help": ["--help"], "help of a verb": ["train", "--help"]} | {case: WRONG[case][0] for case in WRONG}
    code = (
        "import contextlib, io, json, sys\nfrom switchkd.cli import main\nloaded = {}\n"
        "for case, arguments in json.loads(sys.argv[1]).items():\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        main(arguments)\n"
        "    loaded[case] = sorted({name.partition('.')[0] for name in sys.modules})\n"
        "print(json.dumps(loaded))"
    )
    command = [sys.executable, "-c", code, json.dumps(cases)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded = json.loads(result.stdout)
    assert set(loaded) == set(cases)
    assert {case: sorted(SLOW & set(names)) for case, names in loaded.items() if SLOW & set(names)} == {}


def test_a_missing_package_is_one_message(student, capsys, monkeypatch):
    def load(path):
        raise ImportError("PixtralProcessor requires the Torchvision library\nSee there")

    monkeypatch.setattr("switchkd.evaluate.generate.load", load)
    assert run("chat", student) == 1
    assert capsys.readouterr().err == "switchkd: PixtralProcessor requires the Torchvision library See there\n"


@pytest.mark.parametrize("recipe", sorted(path.name for path in RECIPES.glob("[!s]*.yaml")))
def test_a_dry_run_checks_every_recipe_without_weights(recipe, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", RECIPES / recipe, "--dry-run", "--train.seed", "7") == 0
    printed = capsys.readouterr()
    (tmp_path / "resolved.yaml").write_text(printed.out)
    assert "seed: 7" in printed.out
    assert "nothing was trained" in printed.err
    assert run("train", tmp_path / "resolved.yaml", "--dry-run") == 0
    assert capsys.readouterr().out == printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["resolved.yaml"]


def test_train_hands_the_recipe_with_its_overrides_to_the_pipeline(monkeypatch, capsys):
    calls = []

    def pretend(recipe, *, resume, accept_changes):
        calls.append((recipe.train.seed, recipe.train.report_to, resume, accept_changes))
        return SimpleNamespace(folder=Path("runs/out/student"))

    monkeypatch.setitem(sys.modules, "switchkd.distillation", SimpleNamespace(distill=pretend))
    monkeypatch.setattr("switchkd.commands.train.require_parts", lambda recipe: None)  # neither data nor wandb are here
    assert run("train", TINY, "--train.report-to", "tensorboard", "wandb", "--no-resume", "--train.seed=3") == 0
    assert calls == [(3, ("tensorboard", "wandb"), False, False)]
    assert "runs/out/student" in capsys.readouterr().err


@pytest.mark.long
def test_the_doctor_looks_at_a_pair_without_weights(student, tmp_path, capsys):
    other = tmp_path / "teacher"
    shutil.copytree(student, other)
    (other / "model.safetensors").unlink()
    config = json.loads((other / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 64
    (other / "config.json").write_text(json.dumps(config))
    assert run("doctor", "--teacher", str(other), "--student", str(student)) == 0
    found = capsys.readouterr()
    assert "32 and 64: bridge, translated by a linear layer" in " ".join(found.err.split())
    assert f"teacher: {{path: {other}}}" in found.out
    proposed = tmp_path / "recipe.yaml"
    rest = "method: {name: switch_kd}\ndata: {train: d.json}\ntrain: {output: o}\n"
    proposed.write_text(found.out + rest)
    assert run("train", str(proposed), "--dry-run") == 0
    capsys.readouterr()
    assert run("doctor", "--teacher", str(other), "--student", str(student), "--json") == 0
    lines = json.loads(capsys.readouterr().out)["findings"]
    assert {line["check"]: line["level"] for line in lines}["feature width"] == "warning"
    config["model_type"] = "unheard_of"
    (other / "config.json").write_text(json.dumps(config))
    assert run("doctor", "--teacher", str(other), "--student", str(student)) == 1


def test_an_interrupted_run_says_the_command_that_goes_on(monkeypatch, capsys):
    def stopped(*_):
        raise Interrupted(2, "SIGINT: saved")

    for verb in (Train, Evaluate):
        monkeypatch.setattr(verb, "run", stopped)
    assert run("train", "a  b.yaml", "--no-resume", "--train.seed", "3") == 130
    assert capsys.readouterr().err == "switchkd: SIGINT: saved\nTo go on: switchkd train 'a  b.yaml' --train.seed 3\n"
    assert run("evaluate", "m", "d") == 130
    assert capsys.readouterr().err == "switchkd: SIGINT: saved\n"


def test_the_doctors_verdict_is_the_exit_code(monkeypatch, capsys):
    from switchkd.doctor import Finding, Findings

    monkeypatch.setattr("switchkd.commands.doctor.require_parts", lambda recipe: None)  # its data are not here
    for level, code in [("ok", 0), ("warning", 0), ("failed", 1)]:
        findings = Findings([Finding(level, "steps", "some")])
        monkeypatch.setattr("switchkd.doctor.examine", lambda recipe, f=findings: f)
        assert run("doctor", TINY) == code
        printed = capsys.readouterr()
        assert f"{level} " in printed.err
        assert printed.out == ""
        assert run("doctor", TINY, "--json") == code
        found = json.loads(capsys.readouterr().out)
        assert (found["ok"], found["findings"][0]["level"]) == (code == 0, level)


def test_demo_hands_on_its_seed_and_folder(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setitem(sys.modules, "switchkd.demonstration", SimpleNamespace(main=lambda *given: calls.append(given)))
    assert run("demo", "--seed", "3", "--output", tmp_path) == 0
    assert calls == [(3, tmp_path)]


def test_models_lists_every_family(capsys):
    from switchkd.models.families import FAMILIES

    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()
    for model_type, family in FAMILIES.items():
        (line,) = [line for line in lines if model_type in line.split()]
        assert "ForConditionalGeneration" in line
        told = {word.strip(",") for word in line.split()}
        assert {name for names in family.tested.values() for name in names} <= told
        assert line.count("its own") == 2 - len(family.tested)


def test_evaluate_prints_a_table_and_writes_the_results(student, data, capsys, tmp_path, monkeypatch):
    assert run("evaluate", student, data, "--max-new-tokens", "2", "--output", tmp_path / "r.json") == 0
    printed = capsys.readouterr()
    assert "shape" in printed.out
    assert str(tmp_path / "r.json") in printed.err
    assert json.loads((tmp_path / "r.json").read_text())["questions"] == 1
    # without --output, models of one name do not overwrite each other's results
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", student, "test.json", "--max-new-tokens", "2") == 0
    (written,) = Path("runs/evaluate").glob("*.json")
    assert written.name.startswith(f"{str(student).strip('/').replace('/', '-')}--test")


def test_an_evaluation_that_fails_fails_the_command(student, data, capsys, tmp_path):
    data.write_text(data.read_text().replace("0.png", "../0.png"))
    assert run("evaluate", student, data, "--output", tmp_path / "r.json") == 1
    assert "sample 'a'" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


def test_an_unforeseen_error_is_one_line_unless_debugging(monkeypatch, capsys):
    def fail(*given):
        raise KeyError("lost")

    monkeypatch.setitem(sys.modules, "switchkd.demonstration", SimpleNamespace(main=fail))
    assert run("demo") == 1
    assert capsys.readouterr().err == "switchkd: KeyError: 'lost' (SWITCHKD_DEBUG=1 shows where)\n"
    monkeypatch.setenv("SWITCHKD_DEBUG", "1")
    with pytest.raises(KeyError):
        run("demo")


def test_an_interrupted_command_says_so(monkeypatch, capsys):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "switchkd.demonstration", SimpleNamespace(main=interrupt))
    assert run("demo") == 130
    assert capsys.readouterr().err == "switchkd: interrupted\nTo go on: switchkd demo\n"


def test_fields_are_told_from_flags():
    typed = [
        "train",
        "r.yaml",
        "--stages.0.train",
        "vision",
        "language",
        "--dry-run",
        "--a.b=--c",
        "--train.max_steps",
        "-1",
    ]
    assert cli.split_fields(typed) == (
        ["train", "r.yaml", "--dry-run"],
        ["--stages.0.train", "vision", "language", "--a.b=--c", "--train.max_steps", "-1"],
    )
    assert cli.split_fields(["evaluate", "--output=a.json", "m.x"]) == (["evaluate", "--output=a.json", "m.x"], [])


def test_one_question_gets_one_answer(student, data, capsys):
    arguments = [
        "chat",
        student,
        "--image",
        data.parent / "0.png",
        "--question",
        "What is it?",
        "--max-new-tokens",
        "4",
    ]
    assert run(*arguments) == 0
    first = capsys.readouterr().out
    assert run(*arguments) == 0
    assert capsys.readouterr().out == first != ""
    assert run("chat", student, "--image", data, "--question", "What?") == 1
    assert "cannot be read" in capsys.readouterr().err


def test_the_program_exits_with_two_for_a_typo_and_prints_no_traceback():
    result = program("train", TINY, "--train.learning-rat", "1")
    assert result.returncode == 2
    assert (
        result.stderr
        == "switchkd: --train.learning_rat: `train` has no `learning_rat`; did you mean `learning_rate`?\n"
    )
    assert result.stdout == ""


@pytest.mark.long
def test_the_program_prints_a_resolved_recipe():
    """And loads nothing that trains, for the memory of real models too."""
    code = (
        "import sys\nfrom switchkd.cli import main\ncode = main(sys.argv[1:])\n"
        "print('loaded', *sys.modules, file=sys.stderr)\nsys.exit(code)"
    )
    models = ["--student.path", str(student_path()), "--teacher.path", str(teacher_path())]
    command = [sys.executable, "-c", code, "train", str(RECIPES / "tinyllava-0.5b-from-3b.yaml"), "--dry-run", *models]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0
    assert "stage 3, dft: switch_kd trains vision, projector, language" in result.stderr
    assert "stage 1, dpt: switch_kd trains projector for 1 epochs" in result.stderr
    assert re.search(r"stage 3, memory: about [\d.]+ .iB", result.stderr)
    loaded = result.stderr.splitlines()[-1].split()
    assert loaded[0] == "loaded"
    trainers = {"peft", "bitsandbytes", "transformers.trainer", "tensorboard", "plotly", "gradio", "lmms_eval"}
    assert trainers & set(loaded) == set()


def test_the_version_is_said(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"switchkd {__version__}\n"
