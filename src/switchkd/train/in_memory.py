"""Whether the student that has just been trained answers as the finished one on the disk does, to the bit."""

from switchkd.models.liger import has_kernels
from switchkd.processes import sharded
from switchkd.train.context import StageContext


def why_reloaded(context: StageContext, dtype: str = "auto") -> str | None:
    """Why the questions at the end need the finished student, and not the one in memory; None where that is exact.

    Args:
        context: of the last stage.
        dtype: what the recipe's questions are asked in.
    """
    run, recipe = context.run, context.run.recipe
    if dtype != "auto":
        return f"evaluate.dtype is {dtype}"
    if recipe.student.lora is not None or recipe.student.quantization is not None:
        return "what is saved has its adapters merged into weights of full precision"
    if sharded():
        return "its weights are spread over the processes"
    learned = {parameter.dtype for parameter in run.student.parameters()}
    if learned != {run.student_dtype}:
        widths = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in learned))
        return f"it is {widths} in memory, and {str(run.student_dtype).removeprefix('torch.')} on the disk"
    if recipe.train.torch_compile or has_kernels(run.student.model):
        return "its layers are compiled or Liger's, which add in another order than those of plain transformers"
    if recipe.student.attn_implementation != "auto" or any(site.eager_attention for site in context.pair.student_sites):
        return "its attention is another than plain transformers chooses"
    return None
