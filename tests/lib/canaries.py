"""Things that run code where they are opened carelessly, and what must not happen when switchkd opens them.

Each writes the file $CANARY if its code runs.
"""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from killed_runs import STAGE, write_recipe

#: The code, as a shell and as Python would run it.
SHELL = "touch $CANARY"
PYTHON = "import os; open(os.environ['CANARY'], 'w').close()"


class Payload:
    """Runs code while it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (PYTHON,))


def pickles() -> dict[str, bytes]:
    """The same code in every pickle that torch or numpy might open."""
    import torch

    made = {"plain": pickle.dumps(Payload()), "in a dictionary": pickle.dumps({"weight": Payload()})}
    for name, new in (("torch zip", True), ("torch legacy", False)):
        buffer = io.BytesIO()
        torch.save({"state": Payload()}, buffer, _use_new_zipfile_serialization=new)
        made[name] = buffer.getvalue()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("storages", "tensors", "pickle", "sys_info"):
            content = pickle.dumps(Payload())
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return made | {"torch tar": buffer.getvalue(), "npy": npy()}


def npy() -> bytes:
    """An array of objects."""
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    head += b" " * (-(10 + len(head) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + pickle.dumps([Payload()])


YAML_TAGS = [
    f"!!python/object/apply:os.system ['{SHELL}']",
    f"!!python/object/new:os.system ['{SHELL}']",
    f"!!python/object/apply:subprocess.getoutput ['{SHELL}']",
    f'!!python/object/apply:builtins.exec ["{PYTHON}"]',
    f'!!python/object/apply:builtins.eval ["exec(\\"{PYTHON}\\")"]',
    "!!python/name:os.system ''",
    "!!python/module:antigravity ''",
    f"!python/object/apply:os.system ['{SHELL}']",
]

TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('" + SHELL + "') }}",
    "{{ lipsum.__globals__['os'].popen('" + SHELL + "').read() }}",
    '{{ self.__init__.__globals__.__builtins__.exec("' + PYTHON + '") }}',
    "{% for c in [].__class__.__base__.__subclasses__() %}{{ c.__init__.__globals__['os'].system('"
    + SHELL
    + "') }}{% endfor %}",
]


def damage_weights(content: bytes) -> Callable[[Path], None]:
    """Instead of safetensors, a pickle."""

    def change(folder: Path) -> None:
        for file in (folder / "student").glob("*.safetensors"):
            file.unlink()
        (folder / "student" / "pytorch_model.bin").write_bytes(content)

    return change


def pickle_named_safetensors(content: bytes) -> Callable[[Path], None]:
    """A pickle under the name of weights."""
    return lambda folder: (folder / "student" / "model.safetensors").write_bytes(content) and None


def index_of_pickles(content: bytes) -> Callable[[Path], None]:
    """An index that leads to pickles."""

    def change(folder: Path) -> None:
        damage_weights(content)(folder)
        file = folder / "student" / "pytorch_model.bin"
        file.rename(file.with_name("shard.bin"))
        for name in ("pytorch_model.bin.index.json", "model.safetensors.index.json"):
            (folder / "student" / name).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "shard.bin"}}))

    return change


def remote_code(file: str, key: str) -> Callable[[Path], None]:
    """A config that names code beside it."""

    def change(folder: Path) -> None:
        (folder / "student" / "evil.py").write_text(PYTHON + "\nclass Evil:\n    pass\n")
        config = folder / "student" / file
        tree = json.loads(config.read_text()) if config.exists() else {}
        tree["auto_map"] = {key: "evil.Evil"}
        if key in ("AutoConfig", "AutoModelForImageTextToText"):
            tree["model_type"] = "evil"
        else:
            tree[
                {"AutoProcessor": "processor_class", "AutoTokenizer": "tokenizer_class"}.get(
                    key, "image_processor_type"
                )
            ] = "Evil"
        config.write_text(json.dumps(tree))

    return change


def template(text: str) -> Callable[[Path], None]:
    """A chat template that reaches for Python."""
    return lambda folder: (folder / "student" / "chat_template.jinja").write_text(text) and None


def recipe_tag(tag: str) -> Callable[[Path], None]:
    """In a recipe."""

    def change(folder: Path) -> None:
        recipe = folder / "recipe.yaml"
        recipe.write_text(recipe.read_text() + f"evaluate: {tag}\n")

    return change


def data_file(name: str, content: bytes) -> Callable[[Path], None]:
    """Rows that are no rows."""

    def change(folder: Path) -> None:
        (folder / "data" / name).write_bytes(content)
        recipe = folder / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("data/train.json", f"data/{name}"))

    return change


def data_script(folder: Path) -> None:
    """A folder with a loading script, as `datasets` once ran them."""
    place = folder / "data" / "set"
    place.mkdir()
    (place / "set.py").write_text(PYTHON)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("data/train.json", "data/set"))


def state_of_a_checkpoint(name: str, content: bytes) -> Callable[[Path], None]:
    """In a checkpoint to be resumed from, with checksums that fit."""

    def change(folder: Path) -> None:
        from hashlib import sha256

        checkpoint = folder / "run" / STAGE / "checkpoint-1"
        (checkpoint / name).write_bytes(content)
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest[name] = sha256(content).hexdigest()
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))

    return change


def cases() -> dict[str, Callable[[Path], None]]:
    """Name → what to change in a folder with a recipe, its models, its data, and a run with one checkpoint."""
    made: dict[str, Callable[[Path], None]] = {}
    for name, content in pickles().items():
        made[f"weights: {name}"] = damage_weights(content)
        made[f"named safetensors: {name}"] = pickle_named_safetensors(content)
        made[f"index: {name}"] = index_of_pickles(content)
        made[f"rows: {name}"] = data_file("rows.pkl", content)
        for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            made[f"{file}: {name}"] = state_of_a_checkpoint(file, content)
    for number, tag in enumerate(YAML_TAGS):
        made[f"YAML tag {number}"] = recipe_tag(tag)
    for number, text in enumerate(TEMPLATES):
        made[f"chat template {number}"] = template(text)
    for file, key in [
        ("config.json", "AutoConfig"),
        ("config.json", "AutoModelForImageTextToText"),
        ("processor_config.json", "AutoProcessor"),
        ("processor_config.json", "AutoImageProcessor"),
        ("tokenizer_config.json", "AutoTokenizer"),
    ]:
        made[f"remote code: {key}"] = remote_code(file, key)
    made["rows: a tar"] = data_file("rows.tar", pickles()["torch tar"])
    made["rows: a loading script"] = data_script
    return made


def control(tell: Callable[..., None], folder: str) -> None:
    """What happens where the same is opened carelessly: every kind must really fire."""
    import numpy
    import torch
    import yaml

    def fires(act: Callable[[], Any]) -> bool:
        canary = Path(folder) / "control"
        os.environ["CANARY"] = str(canary)
        with suppress(Exception):
            act()
        there = canary.exists()
        canary.unlink(missing_ok=True)
        return there

    for name, content in pickles().items():
        file = Path(folder) / "careless"
        file.write_bytes(content)
        if name == "npy":
            fired = fires(lambda: numpy.load(file, allow_pickle=True))  # noqa: B023
        elif name in ("plain", "in a dictionary"):
            fired = fires(lambda: pickle.loads(content))  # noqa: B023
        else:
            fired = fires(lambda: torch.load(file, weights_only=False))  # noqa: B023
        tell("control", name, fired)
    for number in (0, 1, 2, 3, 4):
        tell("control", f"YAML tag {number}", fires(lambda: yaml.unsafe_load(YAML_TAGS[number])))  # noqa: B023
    tell("control", "code beside a model", fires(lambda: exec(PYTHON)))


def train_with(tell: Callable[..., None], sound: str, folder: str, name: str) -> None:
    """Train from a changed copy, as the command line does, and tell how it ended and whether code ran."""
    shutil.copytree(sound, folder)
    recipe = Path(folder) / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(sound, folder))
    resumed = Path(folder) / "run" / "recipe.yaml"
    resumed.write_text(resumed.read_text().replace(sound, folder))
    os.environ["CANARY"] = str(Path(folder) / "canary")
    cases()[name](Path(folder))
    if not name.startswith(("optimizer.pt", "scheduler.pt", "rng_state.pth")):
        shutil.rmtree(Path(folder) / "run")
    from switchkd.cli import main

    tell("ended", name, main(["train", str(recipe)]), (Path(folder) / "canary").exists())


def write_sound(folder: Path) -> None:
    """A folder for `train_with`, but for its run."""
    write_recipe(folder, max_steps=2)
