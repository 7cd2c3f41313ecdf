"""An activation that the project does not have is one class, `queries.Queries`: here with a method of one's own, from pair to loss."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from pairs import PARTS
from queries import Queries
from shown_diffs import hold
from tiny_models import VOCABULARY, tiny_batch, tiny_llava

from switchkd.batch import TEACHER
from switchkd.losses import cross_entropy, relation
from switchkd.methods import Method
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.signals import TokenTerm
from switchkd.train.step import DistillationStep

SITE = Queries(layer=-1)


@dataclass(frozen=True)
class QueryKD(Method):
    """CE + 2·(1 − cos(R_S, R_T)), R = q qᵀ between the queries q of the last layer at visual tokens."""

    name: ClassVar[str] = "query_kd"

    @property
    def needs(self):
        return frozenset({"student", "teacher", SITE})

    def token_terms(self, logits):
        return {"ce": TokenTerm(cross_entropy(logits.student, logits.targets))}

    def sample_terms(self, signals, learned):
        pairs = signals.activations[TEACHER].pairs(SITE, width=False)
        values = [relation(student, teacher) if len(student) else student.sum() for student, teacher in pairs]
        return {"queries": 2 * torch.stack(values)}


def make_pair(**student):
    teacher = Pathway(tiny_llava(hidden=40, depth=3, seed=1).double())
    learner = Pathway(tiny_llava(seed=2, **student).double())
    learner.train_only(PARTS)
    return Pair(learner, teacher, needs=QueryKD().needs, vocabulary=VOCABULARY)


def plain_queries(model, inputs, sample):
    """Of the last layer at the visual tokens of a sample, from what transformers shows of the plain model."""
    plain = model(
        input_ids=inputs.tokens,
        attention_mask=inputs.is_text().long(),
        **inputs.media["image"],
        output_hidden_states=True,
    )
    layer = model.model.language_model.layers[-1]
    queries = layer.self_attn.q_proj(layer.input_layernorm(plain.hidden_states[-2]))
    return queries[sample][inputs.tokens[sample] == model.config.image_token_id]


def test_it_is_what_the_plain_models_have():
    pair, batch = make_pair(), tiny_batch()
    activations = pair(batch).activations[TEACHER]
    for pathway, captured in ((pair.student, activations.student), (pair.teacher, activations.teacher)):
        assert [len(queries) for queries in captured[SITE]] == [4, 8, 0]
        for sample, queries in enumerate(captured[SITE]):
            expected = plain_queries(pathway.model, batch.student, sample)
            torch.testing.assert_close(queries, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_a_method_learns_from_it(loss):
    """The value is the one by hand, every answer token of a sample carries its sample's, and all parts of the student learn from it."""
    pair, batch = make_pair(), tiny_batch()
    sums = DistillationStep(pair, QueryKD(), loss=loss)(batch)
    expected = 0.0
    for sample, answers in ((0, 5), (1, 6)):  # the third sample has no image
        student, teacher = (
            plain_queries(p.model, batch.student, sample).detach() for p in (pair.student, pair.teacher)
        )
        first, second = (student @ student.T).flatten(), (teacher @ teacher.T).flatten()
        expected += 2 * answers * (1 - torch.cosine_similarity(first, second, dim=0).item())
    assert expected > 0.1
    assert sums.terms["queries"].item() == pytest.approx(expected, rel=1e-6)
    assert sums.loss.item() == pytest.approx(sum(term.item() for term in sums.terms.values()), rel=1e-6)
    (sums.loss - DistillationStep(pair, QueryKD(), loss=loss)(batch).terms["ce"]).backward()
    for part in PARTS:
        gradients = [p.grad for p in pair.student.part_parameters(part).values() if p.requires_grad]
        assert any(gradient is not None and torch.count_nonzero(gradient) for gradient in gradients), part
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())


def test_a_pair_that_cannot_be_compared_there_is_refused():
    with pytest.raises(
        ValueError, match=r"visual tokens per image: 9 and 4, and the method compares Queries\(layer=-1\) one by one"
    ):
        make_pair(image_size=24)


def test_the_page_shows_all_of_it():
    hold("methods.md", "tests/lib/queries.py")
