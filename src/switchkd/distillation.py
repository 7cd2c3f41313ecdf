"""From a recipe to a student: doctor, stages, evaluation, model card."""

from pathlib import Path

from switchkd.console import say
from switchkd.doctor import examine_stage
from switchkd.evaluate import evaluate_model, load_questions
from switchkd.processes import processes
from switchkd.recipe.packages import check_packages
from switchkd.recipe.schema import Recipe
from switchkd.train.agree import on_main
from switchkd.train.model_card import add_results
from switchkd.train.output import open_output
from switchkd.train.run import save_result, train_stage
from switchkd.train.run_log import RUN_LOG, kept_log
from switchkd.train.stage import index_rows, open_run, open_stage
from switchkd.train.upload import prepare_upload, upload


def distill(recipe: Recipe, *, resume: bool = True, accept_changes: bool = False) -> Path:
    """Distil the recipe's student, and return the folder of the finished model: `<output>/student`.

    `<output>` also holds `recipe.yaml` (resolved), `train.log` with all that was told, for each stage a folder with checkpoints,
    `metrics.jsonl` and TensorBoard files, and `results.json` where the recipe evaluates.

    Args:
        recipe: everything the run depends on.
        resume: go on from the last checkpoint in `<output>`, if there is one.
        accept_changes: go on even where rows, teacher, start weights or processes are others than those of that checkpoint.

    Raises:
        Interrupted: a signal came during training, which has been saved.
        DataError, ValueError: what cannot be run, before anything is trained.
        FloatingPointError: if the loss or the gradient is not finite.
    """
    check_packages(recipe)
    if recipe.evaluate:  # what cannot be asked at the end must not show hours later
        asked = recipe.evaluate
        load_questions(asked.data, asked.image_root, asked.max_bad_fraction, asked.columns)
    with (
        open_output(recipe, resume=resume) as output,
        kept_log(output / RUN_LOG if processes().is_main_process else None),
    ):
        return _distill(recipe, output, accept_changes=accept_changes)


def _distill(recipe: Recipe, output: Path, *, accept_changes: bool) -> Path:
    on_main(lambda: prepare_upload(recipe))
    run = open_run(recipe)
    indexed = []
    for number, stage in enumerate(recipe.resolved_stages(), start=1):
        # before the first trains: a missing file of the last must not show hours later
        folder = output / f"{number}-{stage.name}"
        indexed.append((stage, folder, index_rows(run, stage, folder)))
    for stage, folder, rows in indexed:
        context = open_stage(run, stage, folder, rows)
        findings = examine_stage(context)
        if processes().is_main_process:
            findings.tell()
        findings.raise_if_failed()
        train_stage(context, accept_changes=accept_changes)
    student = save_result(context, output)
    if recipe.evaluate and processes().is_main_process:
        settings = recipe.evaluate
        results = evaluate_model(
            student,
            settings.data,
            image_root=settings.image_root,
            columns=settings.columns,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            max_bad_fraction=settings.max_bad_fraction,
            output=output / "results.json",
        )
        add_results(student, results.percentages(), data=settings.data)
    if processes().is_main_process:
        upload(recipe, student)
        say(f"the student is in {student}")
    return student
