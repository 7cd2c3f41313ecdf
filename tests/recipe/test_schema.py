import json
from pathlib import Path

import pytest
import yaml

from switchkd.methods import KD, METHODS, SFT, SwitchKD
from switchkd.recipe.parsing import RecipeError
from switchkd.recipe.schema import (
    Data,
    LearningRates,
    LoRA,
    Pairing,
    Recipe,
    ResolvedStage,
    Stage,
    Student,
    Teacher,
    Train,
    load_recipe,
    recipe_to_dict,
    save_recipe,
)
from switchkd.results.metrics import parse_metrics

RECIPES = Path(__file__).parents[2] / "recipes"

PLAIN = """
teacher: {path: runs/teacher}
student: {path: runs/student}
method: {name: switch_kd, align: 0.5}
data: {train: train.json}
train: {output: runs/out, learning_rate: 1e-3}
"""
STAGED = (
    PLAIN
    + """
stages:
  - {name: dpt, train: [projector], method: {name: kd}, learning_rate: 1e-3}
  - {name: dft, data: mix.json}
"""
)


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_a_short_recipe_gets_the_documented_defaults(write):
    recipe = load_recipe(write(PLAIN))
    assert recipe.method == SwitchKD(align=0.5)
    assert recipe.teacher == Teacher("runs/teacher", "auto")
    assert recipe.student == Student("runs/student", dtype="float32", lora=None)
    # YAML 1.1 reads 1e-3 as text
    assert recipe.train == Train("runs/out", learning_rate=1e-3)
    assert recipe.stages == (Stage("train", ("vision", "projector", "language")),)
    assert recipe.evaluate is None


def test_stages_inherit_what_they_do_not_say(write):
    dpt, dft = load_recipe(write(STAGED)).resolved_stages()
    assert (dpt.method, dpt.learning_rate, dpt.data, dpt.train) == (KD(), 1e-3, "train.json", ("projector",))
    assert (dft.method, dft.learning_rate, dft.data) == (SwitchKD(align=0.5), 1e-3, "mix.json")
    assert (dft.num_train_epochs, dft.max_steps, dft.per_device_train_batch_size) == (1.0, -1, 8)
    assert dft.gradient_accumulation_steps == 1
    assert isinstance(dft, ResolvedStage)
    assert None not in vars(dft).values()


def test_stages_inherit_the_rates_of_the_parts_that_they_train(write):
    flags = ["--train.learning_rates.vision", "1e-6", "--train.learning_rates.projector", "1e-4"]
    dpt, dft = load_recipe(write(STAGED), flags).resolved_stages()
    assert dpt.learning_rates.given() == {"projector": 1e-4}
    assert dft.learning_rates.given() == {"vision": 1e-6, "projector": 1e-4}
    _, dft = load_recipe(write(STAGED), [*flags, "--stages.1.learning_rates.language", "2e-5"]).resolved_stages()
    assert dft.learning_rates.given() == {"language": 2e-5}


def test_a_stage_that_sets_epochs_counts_epochs(write):
    text = STAGED.replace("{name: dft,", "{name: dft, num_train_epochs: 2,")
    dpt, dft = load_recipe(write(text), ["--train.max_steps", "7"]).resolved_stages()
    assert (dpt.max_steps, dft.max_steps, dft.num_train_epochs) == (7, -1, 2.0)


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--train.learning-rate", "0.5"], lambda r: r.train.learning_rate == 0.5),
        (["--train.learning_rate=5e-1"], lambda r: r.train.learning_rate == 0.5),
        (["--train.max_steps", "-1"], lambda r: r.train.max_steps == -1),
        (["--train.bf16", "True"], lambda r: r.train.bf16 is True),
        (["--train.save-total-limit", "none"], lambda r: r.train.save_total_limit is None),
        (["--train.report_to", "tensorboard", "wandb"], lambda r: r.train.report_to == ("tensorboard", "wandb")),
        (["--data.train", "123"], lambda r: r.data.train == "123"),
        (["--data.train", "a.csv", "b.tar"], lambda r: r.data.train == ("a.csv", "b.tar")),
        (["--data.columns.question", "q"], lambda r: r.data.columns == {"question": "q"}),
        (["--stages.1.data", "a.csv", "b.tar"], lambda r: r.resolved_stages()[1].data == ("a.csv", "b.tar")),
        (["--pair.bridge", "always", "--pair.fit-rows", "0"], lambda r: r.pair == Pairing("always", 0)),
        (["--pair.bridge", "none"], lambda r: r.pair.bridge == "none"),
        (["--student.lora.r", "8"], lambda r: r.student.lora == LoRA(r=8)),
        (["--student.lora.r", "8", "--student.quantization", "4bit"], lambda r: r.student.quantization == "4bit"),
        (["--teacher.quantization", "8bit"], lambda r: r.teacher.quantization == "8bit"),
        (
            ["--student.freeze", "vision", "lm_head", "--method.switch", "0"],
            lambda r: r.student.freeze == ("vision", "lm_head"),
        ),
        (["--train.learning_rates.vision", "1e-6"], lambda r: r.train.learning_rates == LearningRates(vision=1e-6)),
        (["--evaluate.data", "test.json"], lambda r: r.evaluate.data == "test.json"),
        (
            ["--evaluate.data", "t", "--evaluate.metric", "anls", "c=exact"],
            lambda r: r.evaluate.metric == ("anls", "c=exact"),
        ),
        (["--evaluate.data", "t", "--evaluate.metric.c", "vqa"], lambda r: r.evaluate.metric == {"c": "vqa"}),
        (["--method.switch", "0"], lambda r: r.resolved_stages()[1].method == SwitchKD(align=0.5, switch=0.0)),
        (["--method.window", "none"], lambda r: r.method.window is None),
        # a new method drops the knobs of the old one, whatever the order of the flags
        (["--method.beta", "1", "--method.name", "kd"], lambda r: r.method == KD(beta=1.0)),
        (["--stages.0.learning-rate", "2"], lambda r: r.resolved_stages()[0].learning_rate == 2),
        (["--stages.1.train", "vision", "language"], lambda r: r.stages[1].train == ("vision", "language")),
        (["--stages.0.method.temperature", "2"], lambda r: r.stages[0].method == KD(temperature=2.0)),
        (["--stages.0.method.name", "sft"], lambda r: r.stages[0].method == SFT()),
        # a stage that inherits its method: one knob changed, the others inherited
        (["--stages.1.method.align", "2"], lambda r: r.stages[1].method == SwitchKD(align=2.0)),
    ],
)
def test_flags_change_any_field(write, flags, value):
    assert value(load_recipe(write(STAGED), flags))


def test_a_flag_may_reach_into_the_only_stage_of_a_recipe_without_stages(write):
    recipe = load_recipe(write(PLAIN), ["--stages.0.max_steps", "3"])
    assert recipe.resolved_stages()[0].max_steps == 3


def test_flags_change_no_shared_yaml_anchor(write):
    text = STAGED.replace("method: {name: kd}", "method: &m {name: kd}").replace(
        "{name: dft,", "{name: dft, method: *m,"
    )
    recipe = load_recipe(write(text), ["--stages.0.method.beta", "1"])
    assert (recipe.stages[0].method, recipe.stages[1].method) == (KD(beta=1.0), KD())


@pytest.mark.parametrize("text", [PLAIN, STAGED, *(path.read_text() for path in sorted(RECIPES.glob("[!s]*.yaml")))])
def test_a_saved_recipe_loads_as_the_equal_recipe(write, tmp_path, text):
    recipe = load_recipe(
        write(text), ["--student.lora.alpha", "8", "--evaluate.data", "Prüfung.json", "--train.seed", "7"]
    )
    save_recipe(recipe, tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    # every default is written out, and plainly: the file can be read without this project
    written = yaml.safe_load((tmp_path / "resolved.yaml").read_text())
    assert written["train"]["save_steps"] == recipe.train.save_steps
    assert json.loads(json.dumps(recipe_to_dict(recipe))) == written


@pytest.mark.parametrize("name", METHODS)
def test_every_method_survives_saving(tmp_path, name):
    method = METHODS[name]()
    recipe = Recipe(Student("s"), method, Data("d"), Train("o"), Teacher("t"), (Stage("one", method=method),))
    save_recipe(recipe, tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.yaml") == recipe


# what is wrong -> (the recipe, flags, every phrase the message must hold)
BAD = {
    "unknown field": (
        PLAIN + "evaluate: {data: a, batch_sise: 3}",
        [],
        ["recipe.yaml", "`evaluate` has no `batch_sise`", "`batch_size`"],
    ),
    "unknown section": (PLAIN + "evalaute: {data: a}", [], ["no `evalaute`", "did you mean `evaluate`"]),
    "field of another section": (PLAIN + "seed: 3", [], ["no `seed`", "did you mean `train.seed`"]),
    "nothing near": (PLAIN + "evaluate: {data: a, zzz: 3}", [], ["no `zzz`", "it has: data, image_root"]),
    "missing section": ("method: {name: sft}", [], ["the section `student` is missing"]),
    "missing field": (PLAIN.replace("{output: runs/out, ", "{"), [], ["train", "needs `output`"]),
    "section without fields": (
        PLAIN.replace("{path: runs/student}", "runs/student"),
        [],
        ["student", "must be a section", "runs/student"],
    ),
    "unknown flag": (PLAIN, ["--train.learning-rat", "1"], ["--train.learning_rat", "did you mean `learning_rate`"]),
    "unknown section in a flag": (PLAIN, ["--trian.seed", "1"], ["--trian.seed", "did you mean `train`"]),
    "flag without a section": (PLAIN, ["--seed", "1"], ["--seed", "--section.field"]),
    "flag without a value": (PLAIN, ["--train.seed"], ["--train.seed needs a value"]),
    "flag twice": (PLAIN, ["--train.seed", "1", "--train.seed", "2"], ["given twice"]),
    "value without a flag": (PLAIN, ["7"], ["unexpected '7'"]),
    "flag with two values": (PLAIN, ["--train.seed", "1", "2"], ["--train.seed", "whole number", "['1', '2']"]),
    "flag into a number": (PLAIN, ["--train.learning_rate.x", "1"], ["--train.learning_rate.x", "no field 'x'"]),
    "no such stage": (STAGED, ["--stages.2.max_steps", "1"], ["--stages.2.max_steps", "has 2", "numbered from 0"]),
    "text for a number": (PLAIN, ["--train.seed", "x"], ["--train.seed", "whole number", "'x'"]),
    "fraction for a whole number": (PLAIN, ["--train.max_steps", "1.5"], ["whole number", "1.5"]),
    "number for text": (PLAIN.replace("train.json", "7"), [], ["data.train", "must be text", "put it in quotes"]),
    "yes for a number": (
        PLAIN.replace("learning_rate: 1e-3", "learning_rate: yes"),
        [],
        ["train.learning_rate", "True"],
    ),
    "neither true nor false": (PLAIN, ["--train.fp16", "maybe"], ["--train.fp16", "true or false", "maybe"]),
    "not a number": (PLAIN, ["--train.learning_rate", "nan"], ["must be finite"]),
    "infinite": (PLAIN, ["--train.weight_decay", ".inf"], ["must be a number"]),
    "unknown dtype": (PLAIN, ["--student.dtype", "float23"], ["--student.dtype", "bfloat16", "did you mean `float32`"]),
    "unknown part": (PLAIN, ["--stages.0.train", "visoin"], ["did you mean `vision`"]),
    "a part twice": (PLAIN, ["--stages.0.train", "vision", "vision"], ["names a part twice"]),
    "no part": (PLAIN + "stages: [{name: a, train: []}]", [], ["would train nothing"]),
    "unknown method": (PLAIN, ["--method.name", "swich_kd"], ["did you mean `switch_kd`"]),
    "method without a name": (PLAIN.replace("name: switch_kd, ", ""), [], ["method.name", "is missing", "switch_kd"]),
    "knob of another method": (PLAIN, ["--method.name", "kd", "--method.align", "1"], ["--method.align", "no `align`"]),
    "knob out of range": (
        PLAIN,
        ["--method.temperature", "0"],
        ["--method.temperature", "must be positive and finite, got 0"],
    ),
    "no stages": (PLAIN + "stages: []", [], ["nothing would be trained"]),
    "stages of one name": (PLAIN + "stages: [{name: a}, {name: a}]", [], ["two stages have one name"]),
    "stage that leaves its folder": (PLAIN + "stages: [{name: ../a}]", [], ["names a folder", "../a"]),
    "switch on a frozen vision encoder": (
        PLAIN + "stages: [{name: a, train: [projector, language]}]",
        [],
        ["stage a trains projector, language", "the switch trains nothing but the vision encoder"],
    ),
    "no teacher": (PLAIN.replace("teacher: {path: runs/teacher}", ""), [], ["switch_kd needs a teacher", "path"]),
    "no teacher in one stage": (
        STAGED.replace("teacher: {path: runs/teacher}", "").replace("name: switch_kd, align: 0.5", "name: sft"),
        [],
        ["stage dpt", "kd needs a teacher"],
    ),
    "zero steps": (PLAIN, ["--train.max_steps", "0"], ["--train.max_steps", "at least 1, or -1", "got 0"]),
    "zero epochs": (PLAIN, ["--train.num_train_epochs", "0"], ["--train.num_train_epochs", "nothing would be trained"]),
    "zero steps in a stage": (STAGED, ["--stages.0.max_steps", "0"], ["--stages.0.max_steps", "got 0"]),
    "zero epochs in a stage": (STAGED, ["--stages.0.num_train_epochs", "0"], ["nothing would be trained"]),
    "zero batch": (PLAIN, ["--train.per_device_train_batch_size", "0"], ["at least 1, got 0"]),
    "negative rate": (PLAIN, ["--train.learning_rate", "-1"], ["must be positive, got -1"]),
    "warmup": (PLAIN, ["--train.warmup_ratio", "1.5"], ["below 1, got 1.5"]),
    "both half precisions": (PLAIN, ["--train.bf16", "true", "--train.fp16", "true"], ["choose one"]),
    "all rows bad": (PLAIN, ["--data.max_bad_fraction", "1"], ["below 1, got 1"]),
    "a negative rate of a part": (
        PLAIN,
        ["--train.learning_rates.vision", "-1"],
        ["learning_rates", "vision must be positive, got -1"],
    ),
    "a rate of a part that does not learn": (
        STAGED,
        ["--stages.0.learning_rates.vision", "1e-6"],
        ["learning_rates names vision, which stage dpt does not train: it trains projector"],
    ),
    "switch on a vision encoder that never learns": (
        PLAIN,
        ["--student.freeze", "vision"],
        ["student.freeze names vision", "stage train, switch_kd", "the switch trains nothing but the vision encoder"],
    ),
    "a term on features that never learn": (
        PLAIN + "stages: [{name: a, train: [language], method: {name: feature_kd}}]",
        [],
        ["stage a trains language", "feature_kd", "the term on V(x) trains nothing but the vision encoder"],
    ),
    "frozen features": (
        PLAIN,
        ["--method.name", "feature_kd", "--student.freeze", "vision"],
        ["student.freeze names vision", "the term on V(x) trains nothing but the vision encoder"],
    ),
    "four bits without adapters": (PLAIN, ["--student.quantization", "4bit"], ["cannot be trained: add `lora`"]),
    "eight bits for a student": (PLAIN, ["--student.quantization", "8bit"], ["must be one of 4bit, got '8bit'"]),
    "a weight of nothing": (
        PLAIN.replace("train: train.json", "train: [b.json, {path: a.json, weight: 0}]"),
        [],
        ["data.train.1: weight must be above 0 and at most 1000, got 0"],
    ),
    "data by another name": (
        PLAIN.replace("train: train.json", "train: [{file: a.json, weight: 2}]"),
        [],
        ["`data.train.0` has no `file` (it has: path, weight, teacher)"],
    ),
    "a number for data": (PLAIN.replace("train: train.json", "train: [5]"), [], ["data.train.0: must be text, got 5"]),
    "data without a name": (PLAIN, ["--data.train"], ["--data.train needs a value"]),
    "data that are none": (
        PLAIN.replace("train: train.json", "train: null"),
        [],
        ["data.train: must be text, got None"],
    ),
    "a column of no such name of ours": (PLAIN, ["--data.columns.q", "question"], ["columns", "none of id, question"]),
    "no alignment": (PLAIN, ["--pair.min_aligned", "0"], ["min_aligned must be above 0 and at most 1, got 0"]),
    "more than all": (PLAIN, ["--pair.min_aligned", "1.5"], ["min_aligned must be above 0 and at most 1, got 1.5"]),
    "rows of the bridge": (PLAIN, ["--pair.fit_rows", "-1"], ["fit_rows must not be negative, got -1"]),
    "no such bridge": (PLAIN, ["--pair.bridge", "linear"], ["must be one of auto, always, none, got 'linear'"]),
    "LoRA rank": (PLAIN, ["--student.lora.r", "0"], ["r must be at least 1"]),
    "key twice": (PLAIN + "data: {train: b}", [], ["recipe.yaml: line 7", "`data` appears twice"]),
    "Python tag": ("student: !!python/object/apply:os.system [touch canary]", [], ["line 1", "os.system", "refused"]),
    "not YAML": ("a: [", [], ["recipe.yaml: line"]),
    "empty": ("", [], ["must hold sections", "None"]),
    "a list": ("[1]", [], ["must hold sections"]),
    "nested without end": ("[" * 5000, [], ["not YAML"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_run_is_refused_with_a_clear_message(write, case):
    text, flags, phrases = BAD[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text), flags)
    message = str(caught.value)
    assert [phrase for phrase in phrases if phrase not in message] == [], message
    assert len(message) < 600
    assert "\n" not in message


def test_a_tag_runs_nothing(write, tmp_path):
    canary = tmp_path / "canary"
    path = write(f"student: !!python/object/apply:os.system ['touch {canary}']")
    with pytest.raises(RecipeError):
        load_recipe(path)
    assert not canary.exists()


def test_many_times_nested_aliases_do_not_fill_the_memory_or_the_message(write):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    with pytest.raises(RecipeError, match="no `a0`"):
        load_recipe(write("\n".join(lines)))
    body = PLAIN + "x: &a0 [y, y]\n" + "\n".join(lines[1:]) + "\nevaluate: {data: *a59}"
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(body.replace("x: &a0", "evaluate_: &a0")))
    assert len(str(caught.value)) < 600


def test_a_missing_file_names_the_nearest_one(tmp_path):
    (tmp_path / "tiny.yaml").write_text(PLAIN)
    with pytest.raises(RecipeError, match=r"tniy.yaml: no such file; did you mean `tiny.yaml`"):
        load_recipe(tmp_path / "tniy.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_a_recipe_made_in_python_is_checked_too():
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        Train("out", max_steps=-2)
    with pytest.raises(ValueError, match="needs a teacher"):
        Recipe(Student("s"), SwitchKD(), Data("d"), Train("o"))


def test_a_recipe_can_take_the_first_rows_of_its_data(write):
    recipe = load_recipe(write(PLAIN), ["--data.rows", "3"])
    assert recipe.data.rows == 3
    with pytest.raises(RecipeError, match="rows must be at least 1, or none for all, got 0"):
        load_recipe(write(PLAIN), ["--data.rows", "0"])


@pytest.mark.parametrize(
    ("written", "chosen"),
    [
        ("anls", {None: "anls"}),
        ("[anls, count=exact]", {None: "anls", "count": "exact"}),
        ("{count: relaxed, 7: choice}", {"count": "relaxed", "7": "choice"}),
        ("[]", {}),
    ],
)
def test_metrics_are_one_name_or_by_kind(write, tmp_path, written, chosen):
    recipe = load_recipe(write(PLAIN + f"evaluate: {{data: d, metric: {written}}}"))
    assert parse_metrics(recipe.evaluate.metric) == chosen
    save_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == recipe
    for wrong in ("anlss", "{count: anlss}", "[anls, exact]"):
        with pytest.raises(RecipeError, match=r"recipe.yaml: evaluate: (there is no metric 'anlss'|two metrics)"):
            load_recipe(write(PLAIN + f"evaluate: {{data: d, metric: {wrong}}}"))
