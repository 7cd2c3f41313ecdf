"""How much memory a training step needs, before there are weights: the step itself runs, on tensors that have shapes and no memory.

Models are built without weights, and `DistillationStep` runs forward and backward. Every tensor that it makes is counted while it lives, so
gradient checkpointing, autocast, LoRA, frozen parts and every family's own layers count as what they are. The batch and whole numbers are
real, because shapes depend on their values; only what a loss makes of the *values* of logits has a stand-in of its size.
"""

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig
from transformers.initialization import no_init_weights

from switchkd.batch import Batch
from switchkd.losses import AutogradTerms, ChunkLoss, CrossEntropyDBiLD
from switchkd.losses.chunks import ChunkGradients, ChunkSums
from switchkd.losses.projection import Sparse
from switchkd.methods import Method, Need
from switchkd.models import Pathway
from switchkd.models.layers import recompute
from switchkd.models.packed_rows import check_packable
from switchkd.models.run_folder import model_folder
from switchkd.models.teacher_head import TeacherHead
from switchkd.pairing import Pair
from switchkd.pairing.bridge import Bridge
from switchkd.pairing.compatibility import compare
from switchkd.recipe.schema import Recipe, ResolvedStage, Student, Teacher
from switchkd.signals import AnswerLogits, SampleTerms, Signals, TokenTerm, TokenTerms
from switchkd.train import lora
from switchkd.train.largest_batch import TEXT, largest_batch, real
from switchkd.train.live import Live
from switchkd.train.parts import freeze
from switchkd.train.precision import widen_learning
from switchkd.train.step import DistillationStep

_Model = TypeVar("_Model", Pathway, TeacherHead)


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
    teacher: PretrainedConfig | None,
    batch: Batch | None = None,
) -> Memory:
    """The memory of a step of `stage`, from the configs of the models and the sizes of a batch.

    Without a `batch` it is the largest that the recipe allows: rows of `data.max_length` tokens (if it names none: of the image's and
    1,024 more), nearly all of them answers, with one image each, or with as many as a packed row holds: a photograph of 640 × 480 pixels,
    or where rows have no room for it the smallest that the encoders take (that matters where the number of visual tokens depends on an
    image's size).

    Raises:
        ValueError: where the rows do not hold the images' tokens, or the pair does not fit the method.
    """
    configs = [student] if teacher is None or "teacher" not in stage.method.needs else [student, teacher]
    if recipe.data.packing:
        check_packable(*configs)
    chosen = [recipe.student, stage.teacher][: len(configs)]
    pathways = [_build(config, model) for config, model in zip(configs, chosen, strict=True) if model is not None]
    cached = stage.teacher is not None and stage.teacher.cache is not None and len(pathways) > 1
    head = _head(pathways.pop()) if cached and not stage.method.needs - {"student", "teacher"} else None
    apart = head is None and stage.teacher is not None and stage.teacher.device is not None
    if recipe.student.lora:
        settings = recipe.student.lora
        lora.add(pathways[0], r=settings.r, alpha=settings.alpha, dropout=settings.dropout)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = (
        nullcontext() if device.type == "cpu" else device
    )  # what is made there by itself needs no look at every call
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live, there:
        with live.elsewhere() if apart else nullcontext():
            model = _imagine(head) if head is not None else _imagine(pathways[1]) if len(pathways) > 1 else None
        step = _step(recipe, stage, _imagine(pathways[0]), model, device if apart else None)
        batch = largest_batch(recipe, stage, step.pair) if batch is None else batch
        batch = batch._replace(
            first_words={}
        )  # the pair that is measured compares the first rows of both heads and no others
        memory = _measure(recipe, stage, step, batch.to(device), live)
    quantized = sum(_saved_by_quantization(*pair) for pair in zip(pathways, chosen, strict=False))
    return _less(memory, quantized)


def forecast(recipe: Recipe, stage: ResolvedStage) -> str:
    """The estimate for the largest batch that a recipe allows, for a reader, or why there is none; reads configs and no weights."""
    configs = []
    for model in (recipe.student, stage.teacher) if stage.teacher else (recipe.student,):
        path, where = model_folder(model.path), {"revision": model.revision} if model.revision else {}
        try:
            configs.append(AutoConfig.from_pretrained(path, **where, local_files_only=True, trust_remote_code=False))
        except (OSError, ValueError):
            return (
                f"cannot be estimated: {path} is no folder with the config.json of a model, and the Hugging Face cache has none of that "
                "name (nothing is downloaded for an estimate)"
            )
    try:
        memory = estimate(recipe, stage, configs[0], configs[1] if stage.teacher else None)
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
    sites, device = ", ".join(sorted(map(str, stage.method.sites))), stage.teacher and stage.teacher.device
    inside = f"; without the terms of method {stage.method.label} at {sites}" if sites else ""
    return inside + (f"; without the teacher's weights and activations, which are on {device}" if device else "")


def _head(teacher: Pathway) -> TeacherHead:
    """What is there of a teacher where a cache has what it says."""
    return TeacherHead(teacher.model.config, teacher.head.weight.detach(), teacher.head.bias)


def _step(
    recipe: Recipe,
    stage: ResolvedStage,
    student: Pathway,
    teacher: Pathway | TeacherHead | None = None,
    teacher_device: torch.device | None = None,
) -> DistillationStep:
    """The step as training builds it."""
    if recipe.train.gradient_checkpointing:
        student.model.activation_checkpointing_enable({"use_reentrant": False})
    student.train_only(stage.train)
    freeze(student, recipe.student.freeze)
    widen_learning(student)
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
    pair = Pair(
        student,
        teacher,
        needs=stage.method.needs,
        vocabulary=rows,
        bridge=bridge,
        learned=learned,
        teacher_device=teacher_device,
    )
    return DistillationStep(pair.train(), _StandIn(stage.method), loss=recipe.train.loss)


class _StandIn(Method):
    """A method's pathways, and tensors of the sizes that its terms make of their logits, whose values are not known."""

    name: ClassVar[str] = "stand-in"

    def __init__(self, method: Method) -> None:
        self.method = method

    @property
    def needs(self) -> frozenset[Need]:
        """Those of the method."""
        return self.method.needs

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """What autograd keeps of a divergence: the softmax of every learner's logits, and of the teacher's."""
        terms = {"ce": TokenTerm(logits.student.log_softmax(dim=-1).sum(dim=-1))}
        for one in logits.compared.values():
            for route, learner in (("align", one.student), ("switch", one.switch)):
                if learner is not None:
                    both = learner.log_softmax(dim=-1) * one.teacher.softmax(dim=-1)
                    terms[route] = one.term(both.sum(dim=-1))
        return terms

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """Left out, and said so: `left_out`."""
        return {}

    def chunk_loss(self) -> ChunkLoss:
        """Gradients that are written out, or found by autograd, as the method's are."""
        loss = self.method.chunk_loss()
        return _WrittenOut(loss) if isinstance(loss, CrossEntropyDBiLD) else AutogradTerms(self.token_terms)


@dataclass(frozen=True)
class _WrittenOut(ChunkLoss):
    """`CrossEntropyDBiLD`: the student's logits become their gradient, the switch's gradient is at the ids that two leaders choose."""

    loss: CrossEntropyDBiLD

    def __call__(
        self, logits: AnswerLogits, *, student: torch.dtype | None, switch: bool
    ) -> tuple[ChunkSums, ChunkGradients]:
        """See `ChunkLoss`."""
        sums = ChunkSums({"ce": logits.student.new_zeros((), dtype=torch.float64)})
        gradients = ChunkGradients(None if student is None else logits.student)
        for name, one in logits.compared.items():
            if switch and one.switch is not None:
                window = min(2 * (self.loss.settings.window or one.switch.shape[1]), one.switch.shape[1])
                ids = torch.zeros(len(one.switch), window, dtype=torch.long, device=one.targets.device)
                gradients.switch[name] = Sparse(ids, one.switch.new_zeros(ids.shape))
        return sums, gradients


def _measure(recipe: Recipe, stage: ResolvedStage, step: DistillationStep, batch: Batch, live: Live) -> Memory:
    """Forward, loss and backward, and what was alive."""
    pair, trainable = step.pair, [p for p in step.parameters() if p.requires_grad]
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

    student, teacher = cast(Any, pair.student), cast(Any, pair.teacher)
    student.see = counted("student_vision", student.see)
    student.say = counted("student_language", student.say)
    if teacher is not None:
        if pair.crossing.teacher is not None:
            teacher.see = live.of_another_device(teacher.see, back=False)
            teacher.say = live.of_another_device(teacher.say, back=True)
        switch, own = counted("switch", teacher.say), teacher.say
        teacher.say = lambda *given: (switch if torch.is_grad_enabled() else own)(*given)
    cast(Any, step)._sum = counted("loss", step._sum)
    half = recipe.train.bf16 or recipe.train.fp16
    dtype = torch.bfloat16 if recipe.train.bf16 else torch.float16
    live.peak, live.flops = live.bytes, 0
    with torch.autocast(batch.student.tokens.device.type, dtype, enabled=half):
        sums = step(batch)
    sums.loss.backward()
    optimizer = 2 * gradients  # AdamW: two moments in the parameter's precision
    peak = live.peak + uncounted + optimizer
    return Memory(weights=weights, optimizer=optimizer, gradients=gradients, **kept, peak=peak, flops=live.flops)


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
