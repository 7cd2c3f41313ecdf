"""Twenty steps of every method, with both losses and on two pairs, through the real command line: what a redesign must reproduce.

PYTHONPATH=tests/lib python -m trajectories FILE      # writes them anew; trajectories.json is from commit bafd436
                                                      # but for `mismatched feature_kd`, which has been possible since it has a bridge
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from run_files import write_data, write_model
from tiny_tokenizers import other_processor, sentencepiece_tokenizer
from transformers import AutoModelForImageTextToText

from switchkd.cli import main as command_line

FILE = Path(__file__).with_suffix(".json")
METHODS = ("sft", "kd", "bild", "switch_kd", "feature_kd", "llava_kd", "llava_mod", "align_kd")
PAIRS = ("matched", "mismatched")
LOSSES = ("fused", "plain")
STEPS = 20
#: With other versions the tiny models begin with other weights and tokenizers.
RECORDED_WITH = {"torch": "2.13.0", "transformers": "5.23.0", "tokenizers": "0.23.3"}
RECORDED_ON = "AVX2"
INSTALLED = {package: version(package).split("+")[0] for package in RECORDED_WITH}
same_versions = pytest.mark.skipif(
    INSTALLED != RECORDED_WITH, reason=f"recorded with {RECORDED_WITH}, and {INSTALLED} are installed"
)
#: What a log line holds besides the terms.
_OTHERS = {"step", "epoch", "learning_rate"}


def write(folder: Path) -> None:
    """Data, a student, a teacher that fits it and one with another tokenizer, template, resolution and width; weights in float64."""
    write_data(folder / "data" / "train.json", 24)
    write_model(folder / "student", seed=2)
    write_model(folder / "matched", seed=1, hidden=40, depth=3)
    processor = other_processor(sentencepiece_tokenizer(), image_size=48, patch_size=8)
    write_model(
        folder / "mismatched", seed=1, processor=processor, hidden=40, depth=3, width=48, image_size=48, vocabulary=448
    )
    for name in ("student", *PAIRS):
        model = AutoModelForImageTextToText.from_pretrained(folder / name)
        model.double().save_pretrained(folder / name)


def trajectory(folder: Path, pair: str, method: str, loss: str) -> list[dict[str, float]] | None:
    """The loss and its terms at every step; None where the pair cannot be trained with the method."""
    output = folder / f"{pair}-{method}-{loss}"
    window = ", window: 32" if method in ("switch_kd", "feature_kd") else ""
    recipe = folder / f"{output.name}.yaml"
    recipe.write_text(
        f"""
teacher: {{path: {folder}/{pair}}}
student: {{path: {folder}/student, dtype: auto}}
method: {{name: {method}{window}}}
data: {{train: {folder}/data/train.json, max_length: 256}}
pair: {{min_aligned: 0.1}}
train:
  {{output: {output}, max_steps: {STEPS}, per_device_train_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1.0e-3,
   logging_steps: 1, save_steps: {STEPS}, report_to: [], loss: {loss}}}
"""
    )
    if command_line(["train", str(recipe)]):
        return None
    (metrics,) = output.glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _OTHERS} for line in lines if "ce" in line]


def main(file: Path) -> None:
    found = {}
    with TemporaryDirectory() as scratch:
        write(Path(scratch))
        for pair in PAIRS:
            for method in METHODS:
                for loss in LOSSES:
                    found[f"{pair} {method} {loss}"] = trajectory(Path(scratch), pair, method, loss)
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
