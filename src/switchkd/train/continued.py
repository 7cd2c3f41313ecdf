"""Going on from the finished student of another run: its bridge and what its method learned go on too."""

import logging
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from safetensors.torch import load_file
from torch import nn
from transformers import TrainerState

from switchkd.files import checksum
from switchkd.models.run_folder import RECIPE, STUDENT
from switchkd.pairing.bridge import Bridge
from switchkd.recipe.schema import Recipe, load_recipe
from switchkd.train import checkpoint

_log = logging.getLogger(__name__)
#: How messages call what learns with a student.
_CALLED = {"bridge": "bridge", "learned": "learned maps"}


@dataclass(frozen=True)
class Continued:
    """What a finished run leaves besides its student."""

    run: Path
    methods: tuple[str, ...]
    #: The checkpoint that its student is from; None where its checkpoints were removed.
    kept: Path | None

    def file(self, name: str, tag: str | None = None) -> Path | None:
        """Where `bridge` or `learned` lies; of several teachers, that of one."""
        file = None if self.kept is None else self.kept / checkpoint.auxiliary_file(name, tag)
        return file if file is not None and file.is_file() else None

    def files(self, name: str) -> list[Path]:
        """All of `bridge`, or of `learned`: of each teacher one."""
        return [] if self.kept is None else sorted(self.kept.glob(f"{name}*.safetensors"))

    def take_over(self, name: str, module: nn.Module | None, *, tag: str | None = None) -> None:
        """Put the run's `bridge` or `learned` into the module that learns with the student now, where both are there, and say so.

        Raises:
            ValueError: its tensors have other names or sizes.
        """
        file = self.file(name, tag)
        if module is None or file is None:
            if module is not None or file is not None:
                who = f"{self.run} left none" if file is None else "this pair has none"
                _log.info("the %s of %s cannot go on: %s", _CALLED[name], self.run, who)
            return
        saved, own = load_file(file), module.state_dict()
        shapes = [{key: tuple(tensor.shape) for key, tensor in state.items()} for state in (saved, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{file} holds {shapes[0]}, and this pair and method need {shapes[1]}: the {_CALLED[name]} of {self.run} are of another "
                "teacher or method. To go on with its student alone, leave student.continue_run (--from) out and give student.path"
            )
        module.load_state_dict(saved)
        if isinstance(module, Bridge):
            module.fitted = True
        _log.info("the %s go on from %s", _CALLED[name], file)

    @property
    def fingerprint(self) -> str:
        """Digest of the files that go on."""
        sums = [checksum(file) for name in checkpoint.AUXILIARY for file in self.files(name)]
        return blake2b(" ".join(sums).encode(), digest_size=8).hexdigest()

    @property
    def described(self) -> str:
        """For the model card."""
        steps = (
            ""
            if self.kept is None
            else f", {TrainerState.load_from_json(str(self.kept / checkpoint.STATE)).global_step} steps of its last stage"
        )
        there = [_CALLED[name] for name in checkpoint.AUXILIARY if self.files(name)]
        return f"`{self.run}` ({' → '.join(self.methods)}{steps})" + (
            f", with its {' and '.join(there)}" if there else ""
        )


def continued(recipe: Recipe) -> Continued | None:
    """What the recipe goes on from; None where it does not ask for that.

    Raises:
        ValueError: it names no finished run.
    """
    if not recipe.student.continue_run:
        return None
    run = Path(recipe.student.path)
    run = run.parent if run.name == STUDENT and (run.parent / RECIPE).is_file() else run
    if not (run / RECIPE).is_file() or not (run / STUDENT).is_dir():
        raise ValueError(
            f"{recipe.student.path} is no finished run: it has no {RECIPE if not (run / RECIPE).is_file() else STUDENT}. --from and "
            "student.continue_run take the folder of one (its train.output); for another checkpoint give student.path alone"
        )
    before = load_recipe(run / RECIPE)
    stages = before.resolved_stages()
    folder = run / f"{len(stages)}-{stages[-1].name}"
    kept = checkpoint.kept(folder, best=before.train.load_best_model_at_end)
    return Continued(run, tuple(dict.fromkeys(stage.method.label for stage in stages)), kept)
