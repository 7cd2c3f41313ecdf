"""A method of one's own, trained as the others are: `python -m examples.own_method RECIPE --method.name top_kd`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from switchkd import METHODS, TEACHER, AnswerLogits, Method, TokenTerm, cross_entropy, distill, forward_kl, load_recipe


@dataclass(frozen=True)
class TopKD(Method):
    """L = CE(z_S, y) + α·KL(p_T ‖ p_S), both distributions over the teacher's `k` likeliest tokens alone; `weight` is α."""

    name: ClassVar[str] = "top_kd"
    weight: float = 1.0
    k: int = 16

    def token_terms(self, logits: AnswerLogits) -> dict[str, TokenTerm]:
        """`ce` and `top`: a value for each answer token, in nats."""
        compared = logits.compared[TEACHER]
        likeliest = compared.teacher.topk(self.k, dim=-1).indices
        divergence = forward_kl(compared.student.gather(-1, likeliest), compared.teacher.gather(-1, likeliest))
        ce = cross_entropy(logits.student, logits.targets)
        return {"ce": TokenTerm(ce), "top": compared.term(self.weight * divergence)}


def main(recipe: str, *flags: str) -> Path:
    """Distil by a recipe whose method may be `top_kd`, and return the student's folder."""
    METHODS[TopKD.name] = TopKD
    return distill(load_recipe(recipe, flags)).folder


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
