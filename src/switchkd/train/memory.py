"""How much memory a training step needs, before there are weights: the models are built without any, and a step runs on shapes alone.

Every tensor that a step makes is counted while it lives, so gradient checkpointing, autocast, LoRA, frozen parts and every family's own
layers count as what they are. Two things are not run but added by their sizes: the walk over the chunks of the loss, and the optimizer.
"""

import copy
import weakref
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig
from transformers.initialization import no_init_weights

from switchkd.losses import CrossEntropyDBiLD
from switchkd.losses.fused import bytes_per_token, chunk_that_fits
from switchkd.methods import Method
from switchkd.models import Pathway
from switchkd.models.families.family import Features
from switchkd.models.layers import recompute
from switchkd.recipe.schema import Recipe, Stage, Student, Teacher
from switchkd.train import lora
from switchkd.train.parts import freeze
from switchkd.types import LOOKS, Batch, Hidden, Route

#: Rows of a chunk's logits that autograd holds at a time for a loss without written gradients, beside the logits themselves.
_PLAIN_COPIES = 3


class NoEstimateError(ValueError):
    """The shapes of a step cannot be known without its pictures."""


@dataclass(frozen=True)
class Load:
    """The largest micro-batch of a device."""

    rows: int
    #: Tokens of its longest row, visual tokens included; the others are padded to it.
    length: int
    #: Answer tokens of all rows.
    answers: int
    images: int


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

    def __str__(self) -> str:
        """For a report, in GiB."""
        shown = {name.replace("_", " "): value for name, value in vars(self).items() if name != "peak"}
        return f"about {self.peak / 2**30:.2f} GiB per device at the peak: " + ", ".join(
            f"{name} {value / 2**30:.2f}" for name, value in shown.items() if value
        )


def estimate(
    recipe: Recipe,
    stage: Stage,
    student: PretrainedConfig,
    teacher: PretrainedConfig | None,
    load: Load,
    pictures: Batch | None = None,
) -> Memory:
    """The memory of a step of `stage`, from the configs of the models and the sizes of a batch.

    `pictures` is a batch whose images have the sizes of the load's; without it they are the smallest that the encoders take, which matters
    where the number of visual tokens depends on an image's size.

    Raises:
        NoEstimateError: where the shapes in a vision encoder depend on what is in its pictures (Qwen2.5-VL, Idefics3, SmolVLM).
        ValueError: where the rows do not hold the images' tokens.
    """
    assert stage.method is not None
    ours = _build(student, recipe.student)
    if recipe.student.lora:
        settings = recipe.student.lora
        lora.add(ours, r=settings.r, alpha=settings.alpha, dropout=settings.dropout)
    theirs = None
    if teacher is not None and stage.method.needs & {"teacher", "switch"}:
        assert recipe.teacher is not None
        theirs = _build(teacher, recipe.teacher)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _Live() as live:
            memory = _Step(recipe, stage, ours, theirs, load, pictures, live).measure()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        names = " or ".join(sorted({p.family.model_type for p in (ours, theirs) if p is not None}))
        raise NoEstimateError(
            f"no estimate of memory without weights for {names}: shapes in its vision encoder depend on the pictures themselves"
        ) from error
    saved = sum(_saved_by_quantization(*pair) for pair in ((ours, recipe.student), (theirs, recipe.teacher)))
    return replace(memory, weights=memory.weights - saved, peak=memory.peak - saved)


def forecast(recipe: Recipe, stage: Stage) -> str:
    """`estimate_longest` for a reader, or why there is none."""
    assert stage.method is not None
    try:
        memory = estimate_longest(recipe, stage)
    except ValueError as reason:
        return f"cannot be estimated: {reason}"
    rows, length = stage.per_device_train_batch_size, recipe.data.max_length
    rows_of = f"{rows} rows of {length} tokens with an image each (data.max_length, the longest there can be)"
    return f"{memory}, for {rows_of}{left_out(stage.method)}"


def estimate_longest(recipe: Recipe, stage: Stage) -> Memory:
    """The estimate for the longest rows that a recipe allows, with an image each; reads configs and no weights.

    Raises:
        ValueError: where there is none, with the reason.
    """
    paths = [recipe.student.path] + ([recipe.teacher.path] if recipe.teacher else [])
    configs = []
    for path in paths:
        try:
            configs.append(AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False))
        except (OSError, ValueError):
            raise ValueError(
                f"{path} is no folder with the config.json of a model, and the Hugging Face cache has none of that "
                "name (nothing is downloaded for an estimate)"
            ) from None
    rows = stage.per_device_train_batch_size or 1
    load = Load(rows=rows, length=recipe.data.max_length, answers=rows * recipe.data.max_length, images=rows)
    return estimate(recipe, stage, configs[0], configs[1] if recipe.teacher else None, load)


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there have been."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if given and not any(isinstance(x, FakeTensor) for x in given):  # sizes of pictures: numbers that must be known
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.bytes -= self._known.pop(key)


class _Step:
    """One step on tensors that have shapes and no memory."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        student: Pathway,
        teacher: Pathway | None,
        load: Load,
        pictures: Batch | None,
        live: _Live,
    ) -> None:
        assert stage.method is not None
        self.recipe, self.stage, self.load, self.live = recipe, stage, load, live
        self.pictures = pictures
        self.method, self.needs = stage.method, stage.method.needs
        self.student = _imagine(student)
        if recipe.train.gradient_checkpointing:
            student.model.activation_checkpointing_enable({"use_reentrant": False})
        student.train_only(stage.train)
        freeze(student, recipe.student.freeze)
        student.train()
        self.teacher = None if teacher is None else _imagine(teacher).requires_grad_(False).eval()
        for pathway in (student, *([self.teacher] if self.teacher is not None else [])):
            pathway.show_attention("attention" in self.needs)
        if self.teacher is not None and recipe.train.switch_checkpointing:
            recompute(self.teacher.part("language"))

    def measure(self) -> Memory:
        """Forward, loss and backward, and what was alive."""
        live, trainable = self.live, [p for p in self.student.parameters() if p.requires_grad]
        weights, gradients = live.bytes, sum(p.numel() * p.element_size() for p in trainable)
        half = self.recipe.train.bf16 or self.recipe.train.fp16
        if (self.stage.gradient_accumulation_steps or 1) > 1:  # those of earlier micro-batches are there from the start
            for parameter in trainable:
                parameter.grad = torch.empty_like(parameter)
        kept: dict[str, int] = {}
        live.peak = start = live.bytes
        dtype = torch.bfloat16 if self.recipe.train.bf16 else torch.float16
        with torch.autocast("cpu", dtype, enabled=half):
            seen = self._see(self.student)
            kept["vision"] = live.bytes - start
            before = live.bytes
            hidden: dict[Route, Tensor] = {"student": self._say(self.student, seen)}
            kept["student"] = live.bytes - before
            theirs = None
            if self.teacher is not None and "teacher" in self.needs:
                with torch.no_grad():
                    theirs = self._see(self.teacher)
                    hidden["teacher"] = self._say(self.teacher, theirs)
            before = live.bytes
            if self.teacher is not None and "switch" in self.needs:
                entering = seen
                if seen is not None and theirs is not None and seen.shape != theirs.shape:  # after the bridge
                    entering = torch.empty_like(theirs).requires_grad_()
                hidden["switch"] = self._say(self.teacher, entering)
                del entering
            kept["switch"] = live.bytes - before
            del seen, theirs
        before, peak = live.bytes, live.peak
        live.peak = before
        walk = walk_bytes(self.recipe, self.method, self._hidden(hidden), torch.device(_device()))
        total = _Loss.apply(walk, hidden["student"], self.student.head.weight, hidden.get("switch"))
        loss = live.peak - before
        live.peak = max(peak, live.peak)
        del hidden
        total.backward()
        optimizer = 2 * gradients  # AdamW: two moments in the parameter's precision
        return Memory(
            weights=weights,
            optimizer=optimizer,
            gradients=gradients,
            student_vision=kept["vision"],
            student_language=kept["student"],
            switch=kept["switch"],
            loss=loss,
            peak=live.peak + optimizer,
        )

    def _see(self, pathway: Pathway) -> Features | None:
        return pathway.see(self._pictures(pathway)) if self.load.images else None

    def _pictures(self, pathway: Pathway) -> Batch:
        """Pictures without content. Their sizes and grids stay real numbers: the shapes of what follows depend on them."""
        with unset_fake_temporarily():
            if self.pictures is not None:
                own = pathway is self.teacher and "teacher" in self.pictures
                real: dict[str, Any] = dict(cast(Any, self.pictures)["teacher"] if own else self.pictures)
                real.pop("teacher", None)
            else:
                blank = pathway.family.blank(pathway.model.config)
                real = {name: torch.cat([cast(Tensor, x)] * self.load.images) for name, x in blank.items()}
        for name, x in real.items():
            if isinstance(x, Tensor) and x.is_floating_point():
                real[name] = torch.empty(x.shape, dtype=x.dtype)
        return cast(Batch, real)

    def _say(self, pathway: Pathway, seen: Features | None) -> Tensor:
        """Hidden states of the answers, as `Pathway.say` gives them: visual tokens first, which changes no size."""
        language = pathway.part("language")[0]
        rows, length = self.load.rows, self._length(pathway)
        words = pathway.model.get_input_embeddings()(torch.zeros(rows, length, dtype=torch.long))
        inputs = words
        if seen is not None:
            projected: Any = pathway.family.project(pathway.model, seen, self._pictures(pathway)).pooler_output
            found = projected if isinstance(projected, Tensor) else torch.cat([x.flatten(0, -2) for x in projected])
            pictures = found.reshape(-1, words.shape[-1]).to(words.dtype)
            flat = words.flatten(0, 1)
            if len(pictures) > len(flat):
                raise ValueError(
                    f"{self.load.images} images are {len(pictures)} visual tokens, but {rows} rows of {length} tokens hold {len(flat)}: "
                    "raise data.max_length"
                )
            inputs = torch.cat([pictures, flat[len(pictures) :]]).view_as(words)
        output = language(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return output.flatten(0, 1)[: self.load.answers]

    def _length(self, pathway: Pathway) -> int:
        """Of the longest row, as the pathway reads it."""
        own = self.pictures is not None and pathway is self.teacher and "teacher" in self.pictures
        return cast(Any, self.pictures)["teacher"]["input_ids"].shape[1] if own else self.load.length

    def _hidden(self, hidden: dict[Route, Tensor]) -> Hidden:
        heads = [p.head for p in (self.student, self.teacher) if p is not None]
        vocabulary = min(head.rows for head in heads)
        teacher = heads[1] if len(hidden) > 1 else None
        return Hidden(
            hidden["student"], heads[0], vocabulary, hidden.get("teacher"), hidden.get("switch"), teacher_head=teacher
        )


def walk_bytes(recipe: Recipe, method: Method, hidden: Hidden, device: torch.device) -> int:
    """What the loss holds while it walks: the logits of a chunk, or of all tokens where it is the plain one."""
    tokens, each = len(hidden.student), bytes_per_token(hidden)
    if recipe.train.loss == "plain":
        return (1 + _PLAIN_COPIES) * tokens * each
    written = isinstance(method.chunk_loss(), CrossEntropyDBiLD)
    return (1 if written else 1 + _PLAIN_COPIES) * chunk_that_fits(max(tokens, 1), each, device) * each


def left_out(method: Method) -> str:
    """What the numbers do not hold: tensors that the method keeps of the inside of both models, and their terms."""
    looks = ", ".join(sorted(method.needs & LOOKS))
    return f"; without what method {method.name} keeps of {looks} in both models" if looks else ""


def loss_bytes(recipe: Recipe, method: Method, hidden: Hidden, device: torch.device) -> int:
    """The same, and the gradients that the loss gives back: of hidden states and of the student's head."""
    learned = (hidden.student, hidden.student_head.weight, hidden.switch)
    return walk_bytes(recipe, method, hidden, device) + sum(
        x.numel() * torch.promote_types(x.dtype, torch.float32).itemsize
        for x in learned
        if x is not None and x.requires_grad
    )


class _Loss(torch.autograd.Function):
    """Stands for `fused_loss`: memory for a while, and gradients from the forward pass on."""

    @staticmethod
    def forward(ctx: Any, walk_bytes: int, student: Tensor, weight: Tensor, switch: Tensor | None) -> Tensor:
        ctx.gradients = [
            torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
            if x is not None and x.requires_grad
            else None
            for x in (student, weight, switch)
        ]
        ctx.dtypes = [None if x is None else x.dtype for x in (student, weight, switch)]
        torch.empty(walk_bytes, dtype=torch.uint8)
        return student.new_zeros((), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return None, *(g if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))


def _build(config: PretrainedConfig, chosen: Student | Teacher) -> Pathway:
    """A model without weights; `auto` is the precision that its config names."""
    dtype: Any = config.dtype or torch.float32 if chosen.dtype == "auto" else getattr(torch, chosen.dtype)
    attention = None if chosen.attn_implementation == "auto" else chosen.attn_implementation
    with torch.device("meta"), no_init_weights():
        config = copy.deepcopy(config)  # what is asked for here is written into it
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    return Pathway(cast(Any, model))


def _saved_by_quantization(pathway: Pathway | None, chosen: Student | Teacher | None) -> int:
    """What the linear layers of the language model are smaller in 8 or 4 bits; the scales of 64 weights each are 4 bytes."""
    if pathway is None or chosen is None or chosen.quantization is None:
        return 0
    per_weight = 1.0 if chosen.quantization == "8bit" else 0.5 + 4 / 64
    layers = [m for m in pathway.part("language")[0].modules() if isinstance(m, nn.Linear)]
    frozen = [m.weight for m in layers if not m.weight.requires_grad]
    return sum(int(w.numel() * (w.element_size() - per_weight)) for w in frozen)


def _imagine(pathway: Pathway) -> Pathway:
    """Give every parameter and buffer the device of the batch, in a mode where that costs nothing; tied ones stay tied."""
    known: dict[int, Tensor] = {}
    for module in pathway.modules():
        owned: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in owned:
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in known:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    known[id(tensor)] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
                if tensor is not None:
                    tensors[name] = known[id(tensor)]
    return pathway


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
