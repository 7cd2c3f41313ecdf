"""A recipe to start from, for a teacher, a student and data: every line says what it does and when to change it."""

import json
import re
from dataclasses import dataclass

import yaml


@dataclass(frozen=True)
class PairSeen:
    """What is known of a pair when its recipe is written."""

    #: In what student and teacher differ, in words; None where nobody could look.
    differences: tuple[str, ...] | None = None
    #: Whether the switch can be used; then whether it goes over a bridge.
    can_switch: bool = True
    bridge: bool = False
    #: Whether there is a GPU that computes in bfloat16.
    bf16: bool = False


def starter(teacher: str, student: str, data: str, output: str, seen: PairSeen) -> str:
    """The text of the recipe."""
    if seen.differences is None:
        told = "# The two could not be looked at here: `switchkd doctor` says what fits, once they are there."
    elif not seen.differences:
        told = "# Student and teacher read the same pictures and the same tokens."
    else:
        told = "# Student and teacher differ, and what differs is overcome:\n" + "\n".join(
            f"#   {one}" for one in seen.differences
        )
    switch = "1.0" if seen.can_switch else "0.0"
    why = (
        "λ2: how much the visual switch counts; 0 leaves it out"
        if seen.can_switch
        else "0, because the switch cannot join these two models"
    )
    bridge = (
        "the switch goes over a bridge here"
        if seen.bridge
        else "a bridge is made only where widths of visual features differ"
    )
    bf16, because = (
        ("true", "computes in bfloat16")
        if seen.bf16
        else ("false", "true on a GPU from 2020 on: faster, with less memory")
    )
    rows: list[tuple[str, str]] = [
        ("teacher:", "the model that is learned from; it stays as it is"),
        (f"  path: {_plain(teacher)}", "a folder, a run, or OWNER/NAME of the Hugging Face hub"),
        ("  dtype: auto", "the checkpoint's own; bfloat16 halves the memory of one in float32"),
        ("student:", "the model that is trained"),
        (f"  path: {_plain(student)}", "likewise; `switchkd init` cuts one from the teacher"),
        ("  dtype: auto", "of the finished student; what learns is held in float32 whatever this says"),
        ("method:", "what is distilled; docs/methods.md lists the others"),
        ("  name: switch_kd", "sft learns without the teacher: train it too, to have something to compare with"),
        ("  align: 1.0", "λ1: how much the teacher's own answers count"),
        (f"  switch: {switch}", why),
        ("  temperature: 3.0", "logits are divided by it before the comparison; the paper's"),
        ("pair:", "what to do where the two differ"),
        ("  bridge: auto", f"{bridge}; always: also for encoders that were trained apart"),
        ("data:", "rows with pictures, in any form of docs/data.md; look first: switchkd data check"),
        (
            f"  train: {_plain(data)}",
            "a file, a folder, a glob, OWNER/NAME:CONFIG:SPLIT, or a list of these, with weights",
        ),
        ("  max_length: 2048", "tokens of a row, its picture's included; the doctor says how long yours are"),
        ("  max_bad_fraction: 0.01", "the run stops when a larger share of the rows cannot be used"),
        ("train:", "all fields: switchkd train --fields"),
        (f"  output: {_plain(output)}", "the folder of the run; the same command goes on there after an interruption"),
        ("  num_train_epochs: 1", "how often all rows are seen; more for a few hundred rows"),
        ("  per_device_train_batch_size: 2", "rows at a time: as many as fit; --dry-run estimates the memory"),
        ("  gradient_accumulation_steps: 8", "16 rows in an optimizer step on one device; fewer with more devices"),
        (
            "  learning_rate: 1.0e-5",
            "for a student that is trained already; 2.0e-5 for a new one, 1.0e-3 for a projector alone",
        ),
        ("  warmup_ratio: 0.03", "share of the steps in which the rate rises from 0"),
        (f"  bf16: {bf16}", because),
        ("  gradient_checkpointing: false", "true takes less memory and more time"),
        ("  seed: 42", "of the order of the rows; another one shows how much is chance"),
        ("  logging_steps: 10", "a line of metrics.jsonl for so many steps"),
        ("  save_steps: 500", "a checkpoint after so many steps; two are kept"),
        (
            "# evaluate:",
            "questions that the student is asked at the end: take the marks away, and name rows it does not learn",
        ),
        ("#   data: test.json", "in the same forms"),
    ]
    width = max(len(line) for line, _ in rows if len(line) <= 48)
    lines = [f"{line.ljust(width)}  # {comment}" for line, comment in rows]
    head = (
        "# A recipe to start from. What stands behind # says what a line does and when to change it; what is not named has the defaults\n"
        "# of docs/fields.md. Check it: switchkd train FILE --dry-run; look for what would go wrong: switchkd doctor FILE."
    )
    return "\n".join([head, told, "", *lines]) + "\n"


def _plain(text: str) -> str:
    """A text as YAML reads it back, in quotes where it needs them."""
    simple = re.fullmatch(r"[\w./~][\w./~+-]*", text) and yaml.safe_load(text) == text
    return text if simple else json.dumps(text, ensure_ascii=False)
