"""How much memory a training step needs, before there are weights: the step itself runs, on tensors that have shapes and no memory.

Models are built without weights, and `DistillationStep` runs forward and backward. Every tensor that it makes is counted while it lives, so
gradient checkpointing, autocast, LoRA, frozen parts and every family's own layers count as what they are. The batch and whole numbers are
real, because shapes depend on their values; only what a loss makes of the *values* of logits has a stand-in of its size.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig
from transformers.initialization import no_init_weights

from switchkd.batch import TEACHER, AnyBatch, Batch, TaggedBatch
from switchkd.models import Pathway
from switchkd.models.layers import recompute
from switchkd.models.packed_rows import check_packable
from switchkd.models.run_folder import model_folder
from switchkd.models.teacher_head import TeacherHead
from switchkd.pairing import Pair
from switchkd.pairing.bridge import Bridge
from switchkd.pairing.compatibility import compare
from switchkd.recipe.schema import Recipe, ResolvedStage, Student, Teacher
from switchkd.train import lora
from switchkd.train.largest_batch import TEXT, largest_batch, real
from switchkd.train.live import Live
from switchkd.train.parts import freeze
from switchkd.train.precision import widen_learning
from switchkd.train.stand_in import StandIn
from switchkd.train.step import DistillationStep

_Model = TypeVar("_Model", bound=Pathway | TeacherHead)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the peak of a training step, and what they are. Frameworks and the CUDA context are not among them."""

    weights: int
    optimizer: int
    #: Of all trainable parameters, when they are all there: at the end of the backward pass.
    gradients: int
    #: What the forward pass keeps for the backward pass, by the way that makes it.
    student_vision: int
    student_language: int
    switch: int
    #: Logits of a chunk, and the gradients that the loss holds: of hidden states and of the student's head.
    loss: int
    #: The most that is alive at one time. Activations go while gradients come, so this is less than the sum.
    peak: int
    #: No bytes: floating-point operations of matrix products, attention and convolutions, forward and backward; a product and a sum are
    #: two.
    flops: int = 0

    def __str__(self) -> str:
        """For a report, in GiB."""
        shown = {name.replace("_", " "): value for name, value in vars(self).items() if name not in ("peak", "flops")}
        return (
            f"about {self.peak / 2**30:.2f} GiB per device at the peak: "
            + ", ".join(f"{name} {value / 2**30:.2f}" for name, value in shown.items() if value)
            + f"; {self.flops / 1e12:.2f} TFLOP"
        )


def estimate(
    recipe: Recipe,
    stage: ResolvedStage,
    student: PretrainedConfig,
    teacher: PretrainedConfig | Mapping[str, PretrainedConfig] | None,
    batch: AnyBatch | None = None,
) -> Memory:
    """The memory of a step of `stage`, from the configs of the models and the sizes of a batch.

    Without a `batch` it is the largest that the recipe allows: rows of `data.max_length` tokens (if it names none: of the image's and
    1,024 more), nearly all of them answers, with one image each, or with as many as a packed row holds: a photograph of 640 × 480 pixels,
    or where rows have no room for it the smallest that the encoders take (that matters where the number of visual tokens depends on an
    image's size). Of several teachers, given by their tags, all are in memory; of the largest batch each teaches a row, and the one whose
    rows need most all that are left.

    Raises:
        ValueError: where the rows do not hold the images' tokens, or the pair does not fit the method.
    """
    if isinstance(teacher, Mapping) and batch is None:
        return max((_estimate(recipe, stage, student, teacher, most=tag) for tag in teacher), key=lambda one: one.peak)
    return _estimate(recipe, stage, student, teacher, batch)


def _estimate(
    recipe: Recipe,
    stage: ResolvedStage,
    student: PretrainedConfig,
    teacher: PretrainedConfig | Mapping[str, PretrainedConfig] | None,
    batch: AnyBatch | None = None,
    *,
    most: str = TEACHER,
) -> Memory:
    """`most`: the tag of the teacher of most rows."""
    configs = teacher if isinstance(teacher, Mapping) else {} if teacher is None else {TEACHER: teacher}
    given = {tag: (config, one) for tag, config in configs.items() if (one := stage.by_teacher.get(tag)) is not None}
    if recipe.data.packing:
        check_packable(student, *(config for config, _ in given.values()))
    learner = _build(student, recipe.student)
    if recipe.student.lora:
        settings = recipe.student.lora
        lora.add(learner, r=settings.r, alpha=settings.alpha, dropout=settings.dropout)
    built = {tag: _build_teacher(config, one) for tag, (config, one) in given.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = (
        nullcontext() if device.type == "cpu" else device
    )  # what is made there by itself needs no look at every call
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live, there:
        models: dict[str, Pathway | TeacherHead] = {}
        for tag, model in built.items():
            with live.elsewhere() if _is_apart(model, given[tag][1]) else nullcontext():
                models[tag] = _imagine(model)
        elsewhere = {tag: device if _is_apart(model, given[tag][1]) else None for tag, model in models.items()}
        step = _step(recipe, stage, _imagine(learner), models, elsewhere)
        batch = _largest(recipe, stage, step, most) if batch is None else batch
        memory = _measure(recipe, stage, step, _without_first_words(batch).to(device), live)
    quantized = _saved_by_quantization(learner, recipe.student) + sum(
        _saved_by_quantization(model, given[tag][1].teacher)
        for tag, model in models.items()
        if isinstance(model, Pathway)
    )
    return _less(memory, quantized)


def _build_teacher(config: PretrainedConfig, stage: ResolvedStage) -> Pathway | TeacherHead:
    """A teacher without weights; its head alone where a cache has what it says."""
    assert stage.teacher is not None
    teacher = _build(config, stage.teacher)
    head_alone = stage.teacher.cache is not None and not stage.method.needs - {"student", "teacher"}
    return _head(teacher) if head_alone else teacher


def _is_apart(teacher: Pathway | TeacherHead, stage: ResolvedStage) -> bool:
    """Whether it lies on a device of its own."""
    return isinstance(teacher, Pathway) and stage.teacher is not None and stage.teacher.device is not None


def _largest(recipe: Recipe, stage: ResolvedStage, step: DistillationStep, most: str) -> AnyBatch:
    """The largest batch of a device: of several teachers each has a row, and one of them all that are left."""
    if not step.is_tagged:
        return largest_batch(recipe, stage, step.pair)
    parts, rows = {}, stage.per_device_train_batch_size
    ordered = sorted(step.pairs, key=lambda tag: tag != most)[:rows]
    for tag in ordered:
        size = rows - len(ordered) + 1 if tag == most else 1
        alone = replace(stage.by_teacher[tag], per_device_train_batch_size=size)
        parts[tag] = largest_batch(recipe, alone, step.pairs[tag])
    return TaggedBatch(parts)


def _without_first_words(batch: AnyBatch) -> AnyBatch:
    """The pair that is measured compares the first rows of both heads and no others."""
    if isinstance(batch, Batch):
        return batch._replace(first_words={})
    return TaggedBatch({tag: part._replace(first_words={}) for tag, part in batch.parts.items()})


def forecast(recipe: Recipe, stage: ResolvedStage) -> str:
    """The estimate for the largest batch that a recipe allows, for a reader, or why there is none; reads configs and no weights."""
    configs: dict[str, PretrainedConfig] = {}
    taught = {tag: one.teacher for tag, one in stage.by_teacher.items() if one.teacher is not None}
    chosen: dict[str, Student | Teacher] = {"": recipe.student, **taught}
    for tag, model in chosen.items():
        path, where = model_folder(model.path), {"revision": model.revision} if model.revision else {}
        try:
            configs[tag] = AutoConfig.from_pretrained(path, **where, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError):
            return (
                f"cannot be estimated: {path} is no folder with the config.json of a model, and the Hugging Face cache has none of that "
                "name (nothing is downloaded for an estimate)"
            )
    try:
        student = configs.pop("")
        memory = estimate(recipe, stage, student, configs if stage.tagged else configs.get(TEACHER))
    except ValueError as reason:
        return f"cannot be estimated: {reason}"
    rows, length = stage.per_device_train_batch_size, recipe.data.max_length
    if length is None:
        rows_of = f"rows of an image and {TEXT:,} tokens (the recipe names no data.max_length; the doctor says what the data needs)"
    else:
        each = "as many images as they hold" if recipe.data.packing else "an image each"
        rows_of = f"rows of {length} tokens with {each} (data.max_length, the longest there can be)"
    return f"{memory}, for {rows} {rows_of}{left_out(stage)}"


def left_out(stage: ResolvedStage) -> str:
    """What the numbers do not hold: what a method makes of the inside of both models, and a teacher that lies elsewhere."""
    sites = ", ".join(sorted(map(str, stage.method.sites)))
    told = f"; without the terms of method {stage.method.label} at {sites}" if sites else ""
    for tag, one in stage.by_teacher.items():
        if one.teacher is not None and one.teacher.device is not None:
            whose = f"teacher {tag}'s" if stage.tagged else "the teacher's"
            told += f"; without {whose} weights and activations, which are on {one.teacher.device}"
    return told


def _head(teacher: Pathway) -> TeacherHead:
    """What is there of a teacher where a cache has what it says."""
    return TeacherHead(teacher.model.config, teacher.head.weight.detach(), teacher.head.bias)


def _step(
    recipe: Recipe,
    stage: ResolvedStage,
    student: Pathway,
    teachers: Mapping[str, Pathway | TeacherHead],
    devices: Mapping[str, torch.device | None],
) -> DistillationStep:
    """The step as training builds it."""
    if recipe.train.gradient_checkpointing:
        student.model.activation_checkpointing_enable({"use_reentrant": False})
    student.train_only(stage.train)
    freeze(student, recipe.student.freeze)
    widen_learning(student)
    pairs = {tag: _pair(recipe, stage, student, one, devices[tag]) for tag, one in teachers.items()}
    pair = pairs if stage.tagged else pairs.get(TEACHER) or _pair(recipe, stage, student)
    return DistillationStep(pair, StandIn(stage.method), loss=recipe.train.loss).train()


def _pair(
    recipe: Recipe,
    stage: ResolvedStage,
    student: Pathway,
    teacher: Pathway | TeacherHead | None = None,
    teacher_device: torch.device | None = None,
) -> Pair:
    bridge, learned = None, None
    if teacher is not None:
        if recipe.train.switch_checkpointing and isinstance(teacher, Pathway):
            recompute(teacher.part("language"))
        needs_bridge = any(d.verdict == "bridge" for d in compare(student.family, teacher.family))
        if needs_bridge or recipe.pair.bridge == "always":
            widths = [model.family.geometry.feature_width for model in (student, teacher)]
            bridge = Bridge(*widths)
        learned = stage.method.learned(student.sizes, teacher.sizes)
    rows = min(model.head.rows for model in (student, teacher) if model is not None)
    return Pair(
        student,
        teacher,
        needs=stage.method.needs,
        vocabulary=rows,
        bridge=bridge,
        learned=learned,
        teacher_device=teacher_device,
    )


def _measure(recipe: Recipe, stage: ResolvedStage, step: DistillationStep, batch: AnyBatch, live: Live) -> Memory:
    """Forward, loss and backward, and what was alive."""
    trainable = [p for p in step.parameters() if p.requires_grad]
    weights, gradients = _bytes([*step.parameters(), *step.buffers()]), _bytes(trainable)
    uncounted = weights - live.bytes  # buffers of whole numbers
    for tensor in tree_leaves(batch):
        if isinstance(tensor, Tensor):
            live.add(tensor.untyped_storage())
    if stage.gradient_accumulation_steps > 1:  # those of earlier micro-batches are there from the start
        for parameter in trainable:
            parameter.grad = torch.empty_like(parameter)
    kept = dict.fromkeys(("student_vision", "student_language", "switch", "loss"), 0)

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before, most = live.bytes, live.peak
            live.peak = before
            result = function(*arguments)
            kept[name] += (live.peak if name == "loss" else live.bytes) - before
            live.peak = max(most, live.peak)
            return result

        return call

    student = cast(Any, step.pair.student)
    student.see = counted("student_vision", student.see)
    student.say = counted("student_language", student.say)
    for pair in step.pairs.values():
        teacher = cast(Any, pair.teacher)
        if teacher is None:
            continue
        if pair.crossing.teacher is not None:
            teacher.see = live.of_another_device(teacher.see, back=False)
            teacher.say = live.of_another_device(teacher.say, back=True)
        teacher.say = _by_way(counted("switch", teacher.say), teacher.say)
    cast(Any, step)._sum = counted("loss", step._sum)
    half = recipe.train.bf16 or recipe.train.fp16
    dtype = torch.bfloat16 if recipe.train.bf16 else torch.float16
    live.peak, live.flops = live.bytes, 0
    device = next(iter(batch.parts.values())).student.tokens.device
    with torch.autocast(device.type, dtype, enabled=half):
        sums = step(batch)
    sums.loss.backward()
    optimizer = 2 * gradients  # AdamW: two moments in the parameter's precision
    peak = live.peak + uncounted + optimizer
    return Memory(weights=weights, optimizer=optimizer, gradients=gradients, **kept, peak=peak, flops=live.flops)


def _by_way(switch: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """The teacher runs with gradients for the switch, and without for what it says itself."""
    return lambda *given: (switch if torch.is_grad_enabled() else own)(*given)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _build(config: PretrainedConfig, chosen: Student | Teacher) -> Pathway:
    """A model without weights; `auto` is the precision that its config names."""
    dtype: Any = config.dtype or torch.float32 if chosen.dtype == "auto" else getattr(torch, chosen.dtype)
    attention = None if chosen.attn_implementation == "auto" else chosen.attn_implementation
    with torch.device("meta"), no_init_weights():
        config = copy.deepcopy(config)  # what is asked for here is written into it
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    model.tie_weights()
    return Pathway(cast(Any, model))


def _saved_by_quantization(pathway: Pathway, chosen: Student | Teacher | None) -> int:
    """What the linear layers of the language model are smaller in 8 or 4 bits; the scales of 64 weights each are 4 bytes."""
    if chosen is None or chosen.quantization is None:
        return 0
    per_weight = 1.0 if chosen.quantization == "8bit" else 0.5 + 4 / 64
    layers = [m for m in pathway.part("language")[0].modules() if isinstance(m, nn.Linear)]
    frozen = [m.weight for m in layers if not m.weight.requires_grad]
    return sum(int(w.numel() * (w.element_size() - per_weight)) for w in frozen)


def _less(memory: Memory, saved: int) -> Memory:
    return Memory(**{**vars(memory), "weights": memory.weights - saved, "peak": memory.peak - saved})


def _imagine(pathway: _Model) -> _Model:
    """Give every parameter and buffer the device of the batch, in a mode where that costs nothing; tied ones stay tied.

    The blank image that the family is looked at with stays real, as a batch does.
    """
    blank = real(pathway.family.blank)
    cast(Any, pathway.family).blank = lambda: blank
    known: dict[int, Tensor] = {}
    for module in pathway.modules():
        owned: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in owned:
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in known:
                    fake = torch.zeros(tensor.shape, dtype=tensor.dtype)
                    known[id(tensor)] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
                if tensor is not None:
                    tensors[name] = known[id(tensor)]
    return pathway
