from itertools import islice

import torch
from PIL import Image
from transformers import AutoProcessor

from examples.world_weights.models import VISUAL_TOKENS
from examples.world_weights.packing import Packer, patch_labels
from switchkd import world
from switchkd.world.scenes import COLOURS, Scene, Thing
from switchkd.world.write import samples


def test_packed_rows_are_what_the_shipped_processor_makes_of_the_conversation():
    processor = AutoProcessor.from_pretrained(world.teacher_path())
    drawn = list(islice(samples(0, "train", "medium"), 3))
    inputs = Packer(processor.tokenizer).inputs(drawn)
    width = inputs.tokens.shape[1]
    for index, (_, questions, picture) in enumerate(drawn):
        messages = []
        for turn, question in enumerate(questions):
            image = [{"type": "image", "image": Image.fromarray(picture)}] if turn == 0 else []
            messages += [
                {"role": "user", "content": [*image, {"type": "text", "text": question.text}]},
                {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
            ]
        text = processor.apply_chat_template(messages)
        expected = processor(text=[text], images=[Image.fromarray(picture)], return_tensors="pt")
        assert torch.equal(inputs.tokens[index][: inputs.lengths[index]], expected["input_ids"][0])
        torch.testing.assert_close(inputs.images["pixel_values"][index], expected["pixel_values"][0])

        marked = processor.tokenizer.apply_chat_template(
            messages, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
        )
        unexpanded = [place for place, mask in enumerate(marked["assistant_masks"]) if mask]
        answers = [marked["input_ids"][place] for place in unexpanded]
        places = [place + VISUAL_TOKENS - 1 for place in unexpanded]  # there, the image is one token
        assert inputs.targets[inputs.sample == index].tolist() == answers
        assert inputs.predicts[inputs.sample == index].tolist() == [index * width + place - 1 for place in places]
        assert answers.count(processor.tokenizer.eos_token_id) == len(questions)


def test_patch_labels_say_what_fills_the_cell_of_each_patch():
    scene = Scene(
        (Thing(row=0, column=2, form="circle", colour="red", size="large"), Thing(2, 0, "7", "white", "small"))
    )
    labels = patch_labels([scene])[0].reshape(6, 6, 5)
    assert labels[:2, 4:].reshape(-1, 5).unique(dim=0).tolist() == [[1, 1, 2, 0, 2]]
    assert labels[4:, :2].reshape(-1, 5).unique(dim=0).tolist() == [[6 + 8, COLOURS.index("white") + 1, 1, 2, 0]]
    assert labels[2:4, :, :3].sum() == 0
