"""Every family is cut where its layers are one plain stack, and refused by name where they are not."""

import pytest
import torch
from tiny_families import BUILDS, inputs_for, tiny

from switchkd.convert.cut import cut
from switchkd.models import Pathway, load_pathway
from switchkd.models.fill import fill

#: The layers that a tower of three is left with, where it can be cut; LLaVA's features come from below the last.
REFUSED = {"qwen2_5_vl": "fullatt_block_indexes", "qwen3_vl": "deepstack_visual_indexes"}


@pytest.mark.parametrize("name", BUILDS)
def test_a_cut_model_is_the_teacher_with_layers_left_out(name, tmp_path):
    teacher = Pathway(tiny(name, depth=4))
    keep = {"language": 3}
    if name in REFUSED:
        with pytest.raises(ValueError, match=rf"the vision part of a {name} cannot be cut: .*\({REFUSED[name]}\)"):
            cut(teacher, {"vision": 2})
    elif "llava" not in name:
        keep["vision"] = 2
    config, tensors = cut(teacher, keep)
    fill(type(teacher.model), config, tensors).save_pretrained(tmp_path)
    student = load_pathway(tmp_path)

    # by hand: the same layers taken out of the teacher
    language = teacher.family.part(teacher.model, "language")[0]
    language.layers = torch.nn.ModuleList(language.layers[index] for index in (0, 2, 3))
    language.config.num_hidden_layers = 3
    if getattr(language.config, "layer_types", None):
        language.config.layer_types = [language.config.layer_types[index] for index in (0, 2, 3)]
    if "vision" in keep:
        (stack,) = {
            m for top in teacher.part("vision") for n, m in top.named_modules() if isinstance(m, torch.nn.ModuleList)
        }
        del stack[1]
        if name == "mistral3":  # transformers finds the last hidden state by this number
            teacher.model.model.vision_tower.config.num_hidden_layers = 2
    inputs = inputs_for(name)
    student_z, teacher_z = (pathway.logits(pathway.say(pathway.see(inputs), inputs)) for pathway in (student, teacher))
    torch.testing.assert_close(student_z, teacher_z, rtol=1e-5, atol=1e-6 * float(teacher_z.detach().abs().max()))
    assert student_z.std() > 0.01
    assert student.family.geometry == teacher.family.geometry
