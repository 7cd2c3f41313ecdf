"""Commands that ask a model: `evaluate`, `chat`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from switchkd.commands.base import Verb, say, slug


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
            "runs/evaluate", f"{slug(self.model)}--{slug(str(self.data.with_suffix('')))}.json"
        )
        sizes: Any = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
        evaluate(self.model, self.data, image_root=self.image_root, output=output, **sizes)
        Console().print(rich_table(compare({self.model: output})))
        say(f"results in {output}, answers in {output.with_suffix('.predictions.jsonl')}")
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
