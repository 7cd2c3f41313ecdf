"""`switchkd recipe`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from switchkd.commands.presence import require_data, require_model
from switchkd.commands.verb import Verb, fail, model_libraries, print_json, say, slug, warn
from switchkd.recipe.parsing import suggestion

if TYPE_CHECKING:
    from switchkd.recipe.starter import PairSeen


@dataclass(frozen=True)
class Recipe(Verb):
    """Write a recipe to start from: for a teacher, a student and data, or a copy of one that comes with switchkd.

    Example: switchkd recipe Qwen/Qwen2.5-VL-7B-Instruct Qwen/Qwen2.5-VL-3B-Instruct data/train.json -o mine.yaml

    Example: switchkd recipe --list

    Example: switchkd recipe smolvlm2-256m-from-2.2b
    """

    #: Three names (folders, runs, or models and data of the hub), or the one name of a recipe of --list.
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="TEACHER STUDENT DATA | NAME")]
    #: The file, which must not be there; `-` prints it. By default recipe.yaml, or NAME.yaml.
    output: Annotated[Path | None, arg(aliases=("-o",))] = None
    #: List the recipes and studies that come with switchkd.
    list: bool = False
    #: With --list: as JSON.
    json: bool = False

    def run(self, fields: Sequence[str]) -> int:
        """Write, print or list."""
        if self.list:
            return _list(as_json=self.json)
        if self.json:
            return fail("--json is for --list", 2)
        if len(self.names) == 1:
            return self._copy(self.names[0])
        if len(self.names) != 3:
            return fail(
                f"recipe takes TEACHER STUDENT DATA, or the NAME of one of `recipe --list`, not {len(self.names)} names",
                2,
            )
        return self._start(*self.names)

    def _copy(self, name: str) -> int:
        from switchkd.recipe.shipped_files import shipped

        known = shipped()
        if name not in known:
            return fail(f"there is no recipe {name}{suggestion(name, list(known))} (there are: {', '.join(known)})", 2)
        target = self.output or Path(f"{name}.yaml")
        return _write(
            known[name].read_text(encoding="utf-8"), target, "study" if name.startswith("study-") else "train"
        )

    def _start(self, teacher: str, student: str, data: str) -> int:
        target = self.output or Path("recipe.yaml")
        if target.exists():  # said before the look at the models
            return _write("", target, "train")
        require_data(data)
        import yaml

        from switchkd.recipe.schema import build_recipe
        from switchkd.recipe.starter import starter

        run = f"runs/{slug(Path(student).name)}-from-{slug(Path(teacher).name)}"
        text = starter(teacher, student, data, run, _look(student, teacher))
        build_recipe(yaml.safe_load(text), str(target))  # what is written can be run
        return _write(text, target, "train")


def _write(text: str, target: Path, verb: str) -> int:
    if str(target) == "-":
        sys.stdout.write(text)
        return 0
    if target.exists():
        return fail(f"{target} is there already, and stays as it is: choose another file with -o, or -o - to see it", 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    say(f"{target} is written; next: switchkd {verb} {target} --dry-run")
    return 0


def _list(*, as_json: bool) -> int:
    from switchkd.recipe.shipped_files import described

    known = described()
    if as_json:
        print_json([{"name": name, "about": about} for name, about in known.items()])
        return 0
    width = max(map(len, known))
    for name, about in known.items():
        print(f"{name.ljust(width)}  {about}")
    return 0


def _look(student: str, teacher: str) -> "PairSeen":
    """Config and processor of both models. Of what may be a name of the hub and cannot be had, nothing is known.

    Raises:
        ValueError: a folder that is not there or no model, and a pair that cannot be trained.
    """
    from switchkd.recipe.starter import PairSeen

    away = []
    for model in (student, teacher):
        try:
            require_model(model)
        except ValueError as error:
            if Path(model).exists() or "Hugging Face hub:" not in str(error):
                raise
            away.append(model)
    if away:
        warn(
            f"{' and '.join(away)}: not here, and not to be had from the hub now; the recipe is written without a look at the pair"
        )
        return PairSeen()
    with model_libraries():
        import torch

        from switchkd.pairing.pair_report import compare_checkpoints
    report = compare_checkpoints(student, teacher)
    if refused := [
        f"{one.what}: {one.detail or one.student}" for one in report.differences if one.verdict == "refused"
    ]:
        raise ValueError(f"{student} cannot learn from {teacher}: {'; '.join(refused)}")
    told = tuple(f"{one}: {one.verdict}" for one in report.mismatches)
    can_switch = all(one.verdict != "refused for the switch" for one in report.differences)
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return PairSeen(told, can_switch, report.needs_bridge, bf16)
