"""The commands: a verb is a dataclass whose fields are its arguments and whose `run` is what it does.

What a verb needs is imported when it runs, so that `--help` is quick.
"""

from switchkd.commands.ask import Chat, Evaluate
from switchkd.commands.base import Verb
from switchkd.commands.data import Data
from switchkd.commands.report import Report
from switchkd.commands.students import Convert, Init, Models
from switchkd.commands.study import Study
from switchkd.commands.train import Demo, Doctor, Train

VERBS: tuple[type[Verb], ...] = (
    Demo, Train, Evaluate, Report, Chat, Doctor, Study, Init, Convert, Data, Models,
)  # fmt: skip

__all__ = ["VERBS", "Verb"]
