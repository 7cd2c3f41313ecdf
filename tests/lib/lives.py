"""Lives of a training: processes that train through `distill`, say over a pipe what they do, and are killed where a test wants it.

All are forked from one process that has imported everything, or from one that has loaded the models too: a life costs about half a
second of computing and not the ten of the imports.
"""

import gc
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import offline
from power_loss import DiskWithoutPower, PowerLoss

#: What the process that all lives are forked from imports.
_PRELOADED = ["lives", "tiny_models", "switchkd.distillation", "switchkd.train.trainer", "torch.utils.tensorboard"]
TIMEOUT_SECONDS = 300
#: Audit events of Python that touch names or open files; what C and Rust write in between makes none.
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")


@dataclass(frozen=True)
class End:
    """Where a life ends by SIGKILL; the first that is reached."""

    #: Before the micro-batch of this number, counted over this life.
    batch: int | None = None
    #: At the file operation of this number within the save of number `save` of this life.
    operation: int | None = None
    save: int = 1
    #: So many seconds after that save has begun; the parent kills.
    after_saving: float | None = None
    #: So many seconds after its birth; the parent kills.
    after_birth: float | None = None
    #: The power goes with it: what was not flushed is dropped.
    power: PowerLoss | None = None


@dataclass(frozen=True)
class Trouble:
    """What goes wrong during a life."""

    #: No file can grow beyond so many bytes.
    max_file_bytes: int | None = None
    #: At this micro-batch, a NaN in: loss, or gradient.
    not_finite: tuple[int, str] | None = None


@dataclass(frozen=True)
class Task:
    """What a process is to do."""

    recipe: str
    fields: tuple[str, ...]
    end: End
    trouble: Trouble
    doctor: bool


@dataclass
class Life:
    """What a process said before its end."""

    killed: bool
    exit_code: int
    #: (what, …) in order: resumed, batch, saving, saved, operations, weights, done, error.
    said: list[tuple[Any, ...]] = field(default_factory=list)

    def of(self, what: str) -> list[tuple[Any, ...]]:
        """What it said of one kind, without the kind."""
        return [words[1:] for words in self.said if words[0] == what]

    @property
    def acknowledged(self) -> list[tuple[str, int]]:
        """(stage, step) of every save that has returned."""
        return [(str(stage), int(step)) for stage, step in self.of("saved")]

    @property
    def mid_save(self) -> bool:
        """Whether it was killed between the begin and the return of a save."""
        last = [words[0] for words in self.said if words[0] in ("saving", "saved")]
        return self.killed and last[-1:] == ["saving"]

    @property
    def error(self) -> str | None:
        """The error that ended it."""
        return next((words[0] for words in self.of("error")), None)


def live(
    recipe: Path, fields: Sequence[str] = (), *, end: End | None = None, ranks: int = 1, doctor: bool = False
) -> list[Life]:
    """One process for each rank, from birth to its end; each loads the models for itself. Without `doctor`, nothing is examined before."""
    task = Task(str(recipe), tuple(fields), end or End(), Trouble(), doctor)
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    shared["MASTER_PORT"] = _free_port()
    environments = [{"RANK": rank, "LOCAL_RANK": rank, **shared} if ranks > 1 else {} for rank in range(ranks)]
    return _watch(_forkserver(), task, environments)


class Nursery:
    """A process that has loaded the models of a recipe, and forks lives from itself."""

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe
        self._pipe, other = multiprocessing.Pipe()
        self._process = _forkserver().Process(target=_nurse, args=(other, str(recipe)))
        self._process.start()
        other.close()

    def live(self, fields: Sequence[str] = (), *, end: End | None = None, trouble: Trouble | None = None) -> Life:
        """As `lives.live`, without loading the models."""
        self._pipe.send(Task(str(self.recipe), tuple(fields), end or End(), trouble or Trouble(), False))
        lives: list[Life] | AssertionError = self._pipe.recv()
        if isinstance(lives, AssertionError):
            raise lives
        return lives[0]

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pipe.close()
        self._process.join()


def in_a_fork(function: Callable[..., None], *arguments: Any) -> list[tuple[Any, ...]]:
    """What `function(tell, *arguments)` tells from a process of its own, and ("exit", code) at its end. It must be importable."""
    context = _forkserver()
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(writer, function, arguments))
    process.start()
    writer.close()
    said = []
    while reader.poll(TIMEOUT_SECONDS):
        try:
            said.append(reader.recv())
        except EOFError:
            process.join()
            return [*said, ("exit", process.exitcode)]
    process.kill()
    raise AssertionError(f"no end after {TIMEOUT_SECONDS} s; it said {said}")


def _forkserver() -> multiprocessing.context.ForkServerContext:
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _watch(context: Any, task: Task, environments: Sequence[Mapping[str, Any]]) -> list[Life]:
    """Start a process for each environment, hear what they say, and kill them when the task says so."""
    begun = time.monotonic()
    pipes, processes = [], []
    for environment in environments:
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_train, args=(writer, task, environment))
        process.start()
        writer.close()
        pipes.append(reader)
        processes.append(process)
    said: list[list[tuple[Any, ...]]] = [[] for _ in environments]
    kill_at = None if task.end.after_birth is None else begun + task.end.after_birth
    saves = 0
    hearing = set(range(len(pipes)))
    while hearing:
        # the data workers of a killed process keep its end of the pipe for some seconds: its death counts, not the pipe's
        gone = {number for number in hearing if not processes[number].is_alive()}
        until = kill_at - time.monotonic() if kill_at is not None else 0.05
        ready = wait([pipes[number] for number in hearing], 0 if gone else max(0.0, min(0.05, until)))
        for number in sorted(hearing):
            if pipes[number] in ready:
                try:
                    said[number].append(pipes[number].recv())
                except (EOFError, OSError):  # OSError: killed in the middle of a word
                    hearing.discard(number)
                    continue
                saves += said[number][-1][0] == "saving"
                if said[number][-1][0] == "saving" and saves == task.end.save and task.end.after_saving is not None:
                    kill_at = time.monotonic() + task.end.after_saving
            elif number in gone:
                hearing.discard(number)
                if processes[number].exitcode != 0:  # the other ranks would wait for it
                    _kill(processes)
        if kill_at is not None and time.monotonic() >= kill_at:
            _kill(processes)
            kill_at = None
        if time.monotonic() > begun + TIMEOUT_SECONDS:
            _kill(processes)
            raise AssertionError(f"no end after {TIMEOUT_SECONDS} s: {said}")
    for process in processes:
        process.join()
    return [Life(p.exitcode == -signal.SIGKILL, p.exitcode, words) for p, words in zip(processes, said, strict=True)]


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()


def _free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return int(any_port.getsockname()[1])


# ---- in the processes themselves


def _call(pipe: Connection, function: Callable[..., None], arguments: Sequence[Any]) -> None:
    _settle()
    try:
        function(lambda *words: pipe.send(words), *arguments)
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
        raise


def _settle() -> None:
    """One thread, no network, and nothing on the terminal of the tests."""
    import torch

    offline.guard()
    torch.set_num_threads(1)
    # what is forked from a fork server would start data workers through it too, which a fresh process does not
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)


def _nurse(pipe: Connection, path: str) -> None:
    """Load what a recipe needs, and let every task live in a fork of this process."""
    _settle()
    from switchkd import distillation
    from switchkd.recipe.schema import load_recipe
    from switchkd.train.stage import open_run

    loaded = open_run(load_recipe(Path(path)))  # every life finds the teacher's weights of the first stage in memory
    distillation.open_run = lambda recipe: _seeded(replace(loaded, recipe=recipe))
    gc.collect()
    gc.freeze()  # or every life would look through all that has been imported
    fork = multiprocessing.get_context("fork")
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_watch(fork, task, [{}]))
        except AssertionError as error:
            pipe.send(error)


def _seeded(run: Any) -> Any:
    """As `open_run` seeds the generators."""
    from transformers import set_seed

    set_seed(run.recipe.train.seed)
    return run


def _train(pipe: Connection, task: Task, environment: Mapping[str, Any]) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    _settle()
    from tqdm import tqdm

    from switchkd import distillation
    from switchkd.doctor.findings import Findings
    from switchkd.recipe.schema import load_recipe

    # tqdm's own lock is one semaphore of all that are forked: a life killed while it draws a bar would hold it for ever
    tqdm.set_lock(threading.RLock())
    if not task.doctor:
        distillation.examine_stage = lambda context: Findings([])
    if task.trouble.max_file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (task.trouble.max_file_bytes, resource.RLIM_INFINITY))
    recipe = load_recipe(Path(task.recipe), task.fields)
    at_error = _report_training(lambda *words: pipe.send(words), task, Path(recipe.train.output))
    try:
        distillation.distill(recipe, resume=True)
    except BaseException as error:
        for tell in at_error:
            tell()
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        os._exit(1)
    pipe.send(("done", time.process_time()))
    os._exit(0)  # as a killed process: nothing is tidied up


def _report_training(tell: Callable[..., None], task: Task, output: Path) -> list[Callable[[], None]]:
    """Have every trainer of this process tell what it does, and end it where the task says; returns what is to be told after an error."""
    import torch
    from transformers import TrainerCallback

    from switchkd.train.trainer import DistillationTrainer

    end = task.end
    count = {"batches": 0, "saves": 0, "operations": 0}
    at_error: list[Callable[[], None]] = []
    saving = False
    disk = DiskWithoutPower(output) if end.power else None
    inside = False

    def stage(trainer: DistillationTrainer) -> str:
        return Path(trainer.args.output_dir).name

    def operation() -> None:
        """Before a file operation."""
        nonlocal inside
        if inside:
            return
        inside = True
        if disk is not None:
            disk.look()
        if saving and count["saves"] == end.save:
            count["operations"] += 1
            if count["operations"] == end.operation:
                if disk is not None:
                    assert end.power is not None
                    tell("dropped", *disk.fail(end.power))
                os.kill(os.getpid(), signal.SIGKILL)
        inside = False

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and (saving or disk is not None):
            operation()

    plain_fsync, plain_save = os.fsync, DistillationTrainer._save_checkpoint
    plain_train, plain_loss = DistillationTrainer._inner_training_loop, DistillationTrainer.compute_loss

    def fsync(descriptor: Any) -> None:
        operation()
        plain_fsync(descriptor)
        if disk is not None:
            disk.flushed(descriptor)

    def save(self: DistillationTrainer, *arguments: Any, **settings: Any) -> None:
        nonlocal saving
        count["saves"] += 1
        tell("saving", stage(self), self.state.global_step)
        saving = True
        plain_save(self, *arguments, **settings)
        saving = False
        if count["saves"] == end.save:
            tell("operations", count["operations"])
        tell("saved", stage(self), self.state.global_step)

    class Begun(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tell("resumed", Path(args.output_dir).name, state.global_step)

    def train(self: DistillationTrainer, *arguments: Any, **settings: Any) -> Any:
        self.add_callback(Begun())
        return plain_train(self, *arguments, **settings)

    def compute_loss(self: DistillationTrainer, model: Any, inputs: Any, *arguments: Any, **settings: Any) -> Any:
        count["batches"] += 1
        if end.batch == count["batches"]:
            os.kill(os.getpid(), signal.SIGKILL)
        tell("batch", stage(self), self.state.global_step + 1, tuple(inputs.keys))
        if task.trouble.not_finite and task.trouble.not_finite[0] == count["batches"]:
            poison(self, inputs, task.trouble.not_finite[1])
        return plain_loss(self, model, inputs, *arguments, **settings)

    def poison(trainer: DistillationTrainer, inputs: Any, where: str) -> None:
        """From now on the loss, or the gradient, is not finite; say what the optimizer does, and at the end what it has changed."""
        student, plain_step = trainer.pair.student, trainer.optimizer.step
        weights = {name: value.detach().clone() for name, value in student.named_parameters()}

        def step(*arguments: Any, **settings: Any) -> Any:
            tell("update")
            return plain_step(*arguments, **settings)

        def compare() -> None:
            tell(
                "moved", sum(not torch.equal(p, weights[name]) for name, p in student.named_parameters()), len(weights)
            )

        trainer.optimizer.step = step
        at_error.append(compare)
        tell("poisoned", where, trainer.state.global_step + 1)
        if where == "loss":
            inputs.student.media["image"]["pixel_values"].fill_(float("nan"))
        else:
            student.head.weight.register_hook(lambda gradient: gradient * float("nan"))

    DistillationTrainer._save_checkpoint = save  # type: ignore[method-assign]
    DistillationTrainer._inner_training_loop = train  # type: ignore[method-assign]
    DistillationTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
    if end.operation is not None:
        sys.addaudithook(audit)
        os.fsync = fsync
    return at_error
