"""The command line: `switchkd demo | train | evaluate | chat | doctor | init | convert | models`.

A verb is a dataclass: its fields are its arguments, `run` is what it does. What a verb needs is imported when it runs, so
that `--help` is quick. Exit codes: 0 done, 1 failed, 2 the command or its recipe cannot be understood, 130 interrupted.
"""

import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union

import tyro
from tyro.conf import Positional, arg, subcommand

from switchkd.train.structure import RecipeError, suggestion

if TYPE_CHECKING:
    from switchkd.train.recipe import Recipe

RecipeFile = Annotated[Positional[Path], arg(metavar="RECIPE.yaml")]


@dataclass(frozen=True)
class Verb:
    """One command."""

    #: Whether `--section.field value` may follow.
    takes_fields: ClassVar[bool] = False

    def run(self, fields: Sequence[str]) -> int:
        """Do it and return the exit code. `fields`: the `--section.field value` flags, as they were typed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Demo(Verb):
    """Distil a small student from the teacher that comes with switchkd, in minutes on a CPU.

    Writes a data set, trains one student by SFT and one by Switch-KD, and compares both with the teacher.

    Example: switchkd demo --seed 1
    """

    #: Of the pictures, the questions and the order of the data.
    seed: int = 0
    #: Where everything is left.
    output: Path = Path("runs/demo")

    def run(self, fields: Sequence[str]) -> int:
        """Run the demo."""
        from switchkd.demo import main as run_demo

        run_demo(self.seed, self.output)
        return 0


@dataclass(frozen=True)
class Train(Verb):
    """Train the student of a recipe.

    Any field of the recipe can be changed behind it with --section.field value; --dry-run shows all of them.

    Example: switchkd train recipes/tiny.yaml --train.output runs/mine --train.learning-rate 5e-4 --method.switch 0
    """

    #: The recipe; its relative paths are relative to the current directory.
    recipe: RecipeFile
    #: Check the recipe, print it with every default and the memory it needs, and stop; needs no weights and no data.
    dry_run: bool = False
    #: Go on from the last checkpoint in the recipe's output folder, if there is one.
    resume: bool = True

    takes_fields: ClassVar[bool] = True

    def run(self, fields: Sequence[str]) -> int:
        """Train, or show what would be trained."""
        recipe = _load(self.recipe, fields)
        if self.dry_run:
            _show(recipe)
            return 0
        from switchkd.pipeline import run

        student = run(recipe, resume=self.resume)
        _say(f"the student is in {student}")
        return 0


@dataclass(frozen=True)
class Evaluate(Verb):
    """Ask a model every question of a data set and count exact matches, per kind where the rows name one.

    Example: switchkd evaluate runs/demo/switch-kd/student runs/demo/data/test.json --output results.json
    """

    #: A checkpoint directory, or a name on the Hugging Face hub.
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    #: LLaVA JSON, or messages and images as JSON, JSONL, Parquet or a saved data set.
    data: Annotated[Positional[Path], arg(metavar="DATA")]
    #: Where image paths start; by default the folder of DATA.
    image_root: Path | None = None
    #: Questions at a time.
    batch_size: int = 32
    #: Longer answers are cut, and counted.
    max_new_tokens: int = 64
    #: The results JSON, with the predictions beside it; by default runs/evaluate/MODEL--DATA.json.
    output: Path | None = None

    def run(self, fields: Sequence[str]) -> int:
        """Evaluate, write the results and print the table."""
        from rich.console import Console

        from switchkd.evaluate import evaluate
        from switchkd.report.table import compare, rich_table

        output = self.output or Path(
            "runs/evaluate", f"{_slug(self.model)}--{_slug(str(self.data.with_suffix('')))}.json"
        )
        sizes: Any = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
        evaluate(self.model, self.data, image_root=self.image_root, output=output, **sizes)
        Console().print(rich_table(compare({self.model: output})))
        _say(f"results in {output}, answers in {output.with_suffix('.predictions.jsonl')}")
        return 0


@dataclass(frozen=True)
class Chat(Verb):
    """Ask a model about an image, in the terminal. /image FILE shows it another one, /quit ends.

    Example: switchkd chat runs/demo/switch-kd/student --image runs/demo/data/images/test/00000.png

    Example: switchkd chat MODEL --image photo.jpg --question "What is this?"
    """

    #: A checkpoint directory, or a name on the Hugging Face hub.
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    #: The image to talk about.
    image: Path | None = None
    #: Ask only this, print the answer and end.
    question: str | None = None
    #: Longer answers are cut.
    max_new_tokens: int = 256

    def run(self, fields: Sequence[str]) -> int:
        """Talk."""
        from switchkd.evaluate.chat import Conversation, talk
        from switchkd.evaluate.generate import load

        conversation = Conversation(*load(self.model), max_new_tokens=self.max_new_tokens)
        if self.image is not None:
            conversation.show(self.image)
        if self.question is None:
            talk(conversation)
        else:
            print(conversation.ask(self.question))
        return 0


@dataclass(frozen=True)
class Doctor(Verb):
    """Find what would train silently wrong, before hours are spent: blind models, empty masks, too little memory.

    Of a pair that has no recipe yet it says, without loading weights, what fits, what needs a bridge and what is refused.

    Example: switchkd doctor recipes/tiny.yaml --train.per-device-train-batch-size 32

    Example: switchkd doctor --teacher Qwen/Qwen2.5-VL-7B-Instruct --student checkpoints/mine
    """

    #: The recipe; fields can be changed behind it with --section.field value.
    recipe: Annotated[Positional[Path | None], arg(metavar="RECIPE.yaml")] = None
    #: Instead of a recipe: a checkpoint directory, or a name on the Hugging Face hub.
    teacher: str | None = None
    #: The same for the student.
    student: str | None = None
    #: Also write the findings as JSON to this file; `-` is the output stream.
    json: Path | None = None

    takes_fields: ClassVar[bool] = True

    def run(self, fields: Sequence[str]) -> int:
        """Print the findings, and samples or a proposal; 1 if the recipe, or the pair, must not be trained like this."""
        from switchkd.doctor import examine, examine_pair

        if self.recipe is None and self.teacher is not None and self.student is not None and not fields:
            findings, proposal = examine_pair(self.student, self.teacher)
            if findings.ok and str(self.json) != "-":
                print(proposal, end="")
        elif self.recipe is None or self.teacher is not None or self.student is not None:
            return _fail("doctor takes a recipe, or --teacher and --student", 2)
        else:
            findings = examine(_load(self.recipe, fields))
        findings.print()
        if self.json is not None:
            findings.write_json(self.json)
        return 0 if findings.ok else 1


@dataclass(frozen=True)
class Init(Verb):
    """Make a student to train: cut it from its teacher, or put it together from smaller public models.

    A part that is not named is the teacher's. A projector between parts that were not made for each other is new.

    Example: switchkd init checkpoints/student --from-teacher checkpoints/llava-7b --vision-layers 12 --language-layers 16

    Example: switchkd init checkpoints/student --from-teacher checkpoints/tinyllava-3b --language Qwen/Qwen2.5-0.5B

    Example: switchkd init checkpoints/student --vision google/siglip-base-patch16-224 --language Qwen/Qwen2.5-0.5B
    """

    #: A new directory.
    output: Annotated[Positional[Path], arg(metavar="OUTPUT")]
    #: A checkpoint directory or hub name; the student then reads the same images and, where it can, the same tokens.
    from_teacher: str | None = None
    #: A CLIP or SigLIP model for the student's vision encoder.
    vision: str | None = None
    #: A causal language model for the student.
    language: str | None = None
    #: Layers of the teacher's vision encoder to keep, evenly chosen, the first and the last among them.
    vision_layers: int | None = None
    #: Layers of the teacher's language model to keep, likewise.
    language_layers: int | None = None
    #: Of a new projector's weights.
    seed: int = 0

    def run(self, fields: Sequence[str]) -> int:
        """Write the student."""
        from switchkd.convert import Start, init_student

        start = Start(self.from_teacher, self.vision, self.language, self.vision_layers, self.language_layers)
        init_student(start, self.output, seed=self.seed)
        _say(f"the student is in {self.output}")
        return 0


@dataclass(frozen=True)
class Convert(Verb):
    """Turn a TinyLLaVA Factory checkpoint into a Hugging Face LLaVA, or a LLaVA into a TinyLLaVA checkpoint.

    The weights stay the same, byte for byte, and so do the logits.

    Example: switchkd convert checkpoints/TinyLLaVA-Qwen2.5-3B-SigLIP checkpoints/tinyllava-3b

    Example: switchkd convert runs/mine/student exported --language Qwen/Qwen2.5-0.5B --vision google/siglip-so400m-patch14-384
    """

    #: A checkpoint directory, or a name on the Hugging Face hub; its config says which of the two formats it has.
    source: Annotated[Positional[str], arg(metavar="MODEL")]
    #: A new directory.
    target: Annotated[Positional[Path], arg(metavar="OUTPUT")]
    #: For TinyLLaVA's config, the hub name of the language model; a converted checkpoint remembers its own.
    language: str | None = None
    #: The hub name of the vision encoder, likewise.
    vision: str | None = None

    def run(self, fields: Sequence[str]) -> int:
        """Convert."""
        from switchkd.convert import convert

        _say(convert(self.source, self.target, language=self.language, vision=self.vision))
        return 0


@dataclass(frozen=True)
class Models(Verb):
    """List the model families that can be distilled, and which of their members are tested; others are refused.

    Example: switchkd models
    """

    def run(self, fields: Sequence[str]) -> int:
        """Print the table."""
        from rich.console import Console
        from rich.table import Table
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

        from switchkd.models.families import FAMILIES

        table = Table("model_type", "class", "vision encoders tested", "language models tested")
        for name, family in FAMILIES.items():
            members = (family.tested.get(part, ("its own",)) for part in ("vision_config", "text_config"))
            table.add_row(name, CLASSES[name], *map(", ".join, members))
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        return 0


VERBS: tuple[type[Verb], ...] = (Demo, Train, Evaluate, Chat, Doctor, Init, Convert, Models)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. What a user can cause is one message on stderr, never a traceback.

    With SWITCHKD_DEBUG=1 in the environment errors keep their traceback.
    """
    typed, fields = split_fields(sys.argv[1:] if arguments is None else list(arguments))
    names = {verb.__name__.lower(): verb for verb in VERBS}
    if typed and not typed[0].startswith("-") and typed[0] not in names:
        return _fail(f"there is no command {typed[0]}{suggestion(typed[0], list(names))} ({', '.join(names)})", 2)
    choices: Any = Union[tuple(Annotated[verb, subcommand(name)] for name, verb in names.items())]  # noqa: UP007
    try:
        verb: Verb = tyro.cli(
            choices,
            prog="switchkd",
            description="Visual-switch knowledge distillation for vision-language models.",
            args=typed,
        )
    except SystemExit as stop:  # tyro has printed the help, or what it did not understand
        return int(stop.code or 0)
    if fields and not verb.takes_fields:
        return _fail(f"{fields[0]}: only train and doctor take fields of a recipe", 2)
    try:
        _quiet()
        return verb.run(fields)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if os.environ.get("SWITCHKD_DEBUG") == "1":
            raise
        expected = isinstance(error, ValueError | OSError | ImportError | FloatingPointError)
        message = str(error) if expected and str(error) else f"{type(error).__name__}: {error}"
        hint = "" if expected else " (SWITCHKD_DEBUG=1 shows where)"
        return _fail(message + hint, 2 if isinstance(error, RecipeError) else 1)


def split_fields(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the `--section.field value …` flags out of a command line: (the rest, these flags with their values).

    The values of such a flag are all arguments up to the next one that begins with `--`.
    """
    rest: list[str] = []
    fields: list[str] = []
    current = rest
    for argument in arguments:
        if argument.startswith("--"):
            current = fields if "." in argument.partition("=")[0] else rest
        current.append(argument)
    return rest, fields


def _load(path: Path, fields: Sequence[str]) -> "Recipe":
    from switchkd.train.recipe import load_recipe

    return load_recipe(path, fields)


def _show(recipe: "Recipe") -> None:
    import yaml

    from switchkd.train.memory import forecast
    from switchkd.train.recipe import recipe_to_dict

    print(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True), end="")
    for number, stage in enumerate(recipe.resolved_stages(), start=1):
        length = f"{stage.max_steps} steps" if (stage.max_steps or 0) > 0 else f"{stage.num_train_epochs:g} epochs"
        assert stage.method is not None
        _say(
            f"stage {number}, {stage.name}: {stage.method.name} trains {', '.join(stage.train)} for {length} on {stage.data}"
        )
        _say(f"stage {number}, memory: {forecast(recipe, stage)}")
    _say("the recipe is valid; nothing was trained (--dry-run)")


def _quiet() -> None:
    """Our own messages on stderr, and no progress bars of others but those of downloads."""
    import datasets
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("switchkd").setLevel(logging.INFO)
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> int:
    _say(f"switchkd: {' '.join(message.split())}")
    return code


if __name__ == "__main__":
    sys.exit(main())
