"""The command line: `switchkd VERB …`; the verbs are in `switchkd.commands`.

Exit codes: 0 done, 1 failed, 2 the command or its recipe cannot be understood, 130, 143
or 129 ended by Ctrl-C, SIGTERM or SIGHUP.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Union

import tyro
from tyro.conf import CascadeSubcommandArgs, subcommand

from switchkd.commands import VERBS, Verb
from switchkd.commands.verb import fail
from switchkd.recipe.parsing import RecipeError, suggestion


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. What a user can cause is one message on stderr, never a traceback.

    With SWITCHKD_DEBUG=1 in the environment errors keep their traceback.
    """
    typed, fields = split_fields(sys.argv[1:] if arguments is None else list(arguments))
    if typed == ["--version"]:
        from switchkd.versions import __version__

        print(f"switchkd {__version__}")
        return 0
    names = {verb.__name__.lower(): verb for verb in VERBS}
    if typed and not typed[0].startswith("-") and typed[0] not in names:
        return fail(f"there is no command {typed[0]}{suggestion(typed[0], list(names))} ({', '.join(names)})", 2)
    choices: Any = Union[tuple(Annotated[verb, subcommand(name)] for name, verb in names.items())]  # noqa: UP007
    try:
        verb: Verb = tyro.cli(
            choices,
            prog="switchkd",
            description="Visual-switch knowledge distillation for vision-language models.",
            args=typed,
            config=(CascadeSubcommandArgs,),  # --quiet of `data` may stand behind `check`
        )
    except SystemExit as stop:  # tyro has printed the help, or what it did not understand
        return int(stop.code or 0)
    if fields and not verb.takes_fields:
        return fail(f"{fields[0]}: only train, cache, doctor and study take fields of a recipe", 2)
    try:
        from switchkd.interrupts import ended_by_signals

        with ended_by_signals(), _told_less(quiet=verb.quiet):
            return verb.run(fields)
    except KeyboardInterrupt as stop:
        code = fail(str(stop) or "interrupted", getattr(stop, "code", 130))
        if verb.goes_on:
            _say_how_to_go_on(sys.argv[1:] if arguments is None else arguments)
        return code
    except Exception as error:
        if os.environ.get("SWITCHKD_DEBUG") == "1":
            raise
        expected = isinstance(error, ValueError | OSError | ImportError | FloatingPointError)
        message = str(error) if expected and str(error) else f"{type(error).__name__}: {error}"
        hint = "" if expected else " (SWITCHKD_DEBUG=1 shows where)"
        return fail(message + hint, 2 if isinstance(error, RecipeError) else 1)


def _told_less(*, quiet: bool) -> AbstractContextManager[None]:
    """Around a verb with --quiet."""
    if not quiet:
        return nullcontext()
    from switchkd import console  # imports rich

    return console.quiet()


def _say_how_to_go_on(arguments: Sequence[str]) -> None:
    """Print the command, ready to copy."""
    launched = ", launched as before" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    command = shlex.join(["switchkd", *(word for word in arguments if word != "--no-resume")])
    print(f"To go on{launched}: {command}", file=sys.stderr)


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


if __name__ == "__main__":
    sys.exit(main())
