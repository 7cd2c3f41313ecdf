"""The commands: a verb is a dataclass whose fields are its arguments and whose `run` is what it does. One file each.

What a verb needs is imported when it runs, so that `--help` is quick.
"""

from switchkd.commands.cache import Cache
from switchkd.commands.chat import Chat
from switchkd.commands.convert import Convert
from switchkd.commands.data import Data
from switchkd.commands.demo import Demo
from switchkd.commands.doctor import Doctor
from switchkd.commands.env import Env
from switchkd.commands.evaluate import Evaluate
from switchkd.commands.export import Export
from switchkd.commands.init import Init
from switchkd.commands.models import Models
from switchkd.commands.recipe import Recipe
from switchkd.commands.report import Report
from switchkd.commands.study import Study
from switchkd.commands.train import Train
from switchkd.commands.verb import Verb
from switchkd.commands.world import World

VERBS: tuple[type[Verb], ...] = (
    Demo,
    Train,
    Evaluate,
    Report,
    Chat,
    Doctor,
    Study,
    World,
    Recipe,
    Cache,
    Init,
    Convert,
    Export,
    Data,
    Models,
    Env,
)

__all__ = ["VERBS", "Verb"]
