"""Questions in batches of about one length, and what every process of a run asks of them."""

import json
from types import SimpleNamespace

import pytest
from ranks import run_on_two_ranks
from run_files import write_data, write_model

from switchkd.evaluate import batches, evaluate_model, generate
from switchkd.evaluate.batches import ask_batches, by_length, share, together
from switchkd.evaluate.generate import answers, load
from switchkd.results import Results


def test_the_longest_are_asked_first_and_equal_ones_in_their_order():
    lengths = [(1, 9), (0, 9), (1, 12), (0, 40), (1, 9)]
    assert by_length(lengths, 2) == [[2, 0], [4, 3], [1]]
    assert by_length([], 2) == []


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_shares_come_together_as_they_were(count):
    everything = list(range(5))
    shares = [share(everything, number, count) for number in range(count)]
    assert together(shares) == everything
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture
def two_processes(monkeypatch):
    """This is the first of two processes; `in_every_process` lets it be the second too, and hands both their shares."""
    state = SimpleNamespace(process_index=0, num_processes=2, is_main_process=True)

    def in_every_process(work):
        made = []
        for number in range(2):
            state.process_index = number
            made.append(work())
        state.process_index = 0
        return made

    monkeypatch.setattr(batches, "processes", lambda: state)
    monkeypatch.setattr(batches, "in_every_process", in_every_process)
    return state


def test_every_batch_is_asked_once_and_comes_back_in_order(two_processes, monkeypatch):
    asked = []
    cut = [[3, 1], [0, 4], [2]]
    given = ask_batches(
        cut, lambda batch: asked.append((two_processes.process_index, batch)) or sum(batch), "x", shared=True
    )
    assert given == [4, 4, 2]
    assert sorted({number for number, _ in asked}) == [0, 1]
    asked.clear()
    assert ask_batches(cut, sum, "x", shared=False) == given


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A student, and five pictures with questions of three lengths."""
    folder = tmp_path_factory.mktemp("asked")
    write_model(folder / "student", seed=2)
    write_data(folder / "data" / "test.json", 5)
    return folder


def told(results: Results) -> list[tuple[str, str, bool]]:
    return [(one.id, one.got, one.truncated) for one in results.predictions]


def test_answers_are_those_of_one_process_in_the_order_of_the_file(asked, two_processes, monkeypatch, tmp_path):
    data = asked / "data" / "test.json"
    model, processor = load(asked / "student")
    lengths = []

    def noted(model, processor, samples, **how):
        lengths.append([len(sample["messages"][-1]["content"][-1]["text"]) for sample in samples])
        return answers(model, processor, samples, **how)

    monkeypatch.setattr("switchkd.evaluate.evaluation.answers", noted)
    arguments = {"processor": processor, "batch_size": 3, "max_new_tokens": 3}
    shared = evaluate_model(model, data, share=True, output=tmp_path / "r.json", **arguments)
    at_two = lengths.copy()
    lengths.clear()
    alone = evaluate_model(model, data, **arguments)
    assert told(shared) == told(alone)
    assert [one.id for one in alone.predictions] == [f"test-{row}/{turn}" for row in range(5) for turn in (1, 2)]
    assert shared.data_fingerprint == alone.data_fingerprint
    assert sorted(at_two) == sorted(lengths)  # the same batches, so that sums have the same order
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat, reverse=True)
    assert Results.load(tmp_path / "r.json").right == alone.right


def test_what_fails_in_one_process_fails_in_all(two_processes):
    def fail(batch):
        if two_processes.process_index == 1:
            raise ValueError("in the second")
        return batch

    with pytest.raises(ValueError, match="in the second"):
        ask_batches([[0], [1]], fail, "x", shared=True)


def test_a_token_is_made_from_the_cache_of_those_before_it(asked, monkeypatch):
    model, processor = load(asked / "student")
    widths = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, given: widths.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    row = {
        "id": "a",
        "images": [],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Which one is it?"}]}],
    }
    model.generation_config.eos_token_id = 0
    generate.answers(model, processor, [row], max_new_tokens=4)
    assert widths[0] > 4
    assert widths[1:] == [1, 1, 1]


@pytest.mark.slow
def test_two_ranks_answer_as_one_process_does(asked, tmp_path):
    run_on_two_ranks("evaluate_on_two_ranks.py", asked / "student", asked / "data" / "test.json", tmp_path)
    alone = evaluate_model(asked / "student", asked / "data" / "test.json", batch_size=3, max_new_tokens=3)
    shared = Results.load(tmp_path / "results.json")
    assert told(shared) == told(alone)
    of_ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert of_ranks[0] == of_ranks[1] == [[*one] for one in told(alone)]
    counts = [int((tmp_path / f"asked-{rank}").read_text()) for rank in (0, 1)]
    assert sum(counts) == 10
    assert min(counts) > 0
    assert sorted(path.suffix for path in tmp_path.glob("results*")) == [".json", ".jsonl"]
