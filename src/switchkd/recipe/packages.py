"""Optional packages that a recipe needs: what is not installed is said before anything is loaded, and not by the step that wants it."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from switchkd.recipe.parsing import RecipeError, suggestion

if TYPE_CHECKING:
    from switchkd.recipe.schema import Recipe

#: What `train.report_to` may name → the module it needs.
TRACKERS = {
    "azure_ml": "azureml", "clearml": "clearml", "codecarbon": "codecarbon", "comet_ml": "comet_ml", "dagshub": "dagshub",
    "dvclive": "dvclive", "flyte": "flytekit", "kubeflow": "kubeflow", "mlflow": "mlflow", "neptune": "neptune", "swanlab": "swanlab",
    "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb",
}  # fmt: skip
#: The beginning or a part of an optimizer's name → the module it needs; the first that fits.
_OF_OPTIMIZERS = {
    "adamw_torch_": "torchao", "8bit": "bitsandbytes", "bnb": "bitsandbytes", "paged": "bitsandbytes", "lion": "bitsandbytes",
    "ademamix": "bitsandbytes", "schedule_free": "schedulefree", "grokadamw": "grokadamw", "anyprecision": "torchdistx",
    "stable_adamw": "torch_optimi",
}  # fmt: skip
#: Optimizers of torch itself, whose names have a part of these.
_OF_TORCH = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused")


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker that transformers does not know."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(
                f"report_to names {name!r}{suggestion(name, list(TRACKERS))} (there are: {', '.join(TRACKERS)})"
            )


def check_packages(recipe: "Recipe") -> None:
    """Raise RecipeError, naming the field and what to install, where a package is missing."""
    needs = [(f"train.report_to names {name}, which", TRACKERS[name]) for name in recipe.train.report_to]
    if recipe.train.kernels == "liger":
        needs.append(("train.kernels: liger needs a CUDA GPU and the package liger-kernel, which", "liger_kernel"))
    optimizer = str(recipe.train.arguments.get("optim", ""))
    module = next((module for part, module in _OF_OPTIMIZERS.items() if part in optimizer), None)
    if module is not None and optimizer not in _OF_TORCH:
        needs.append((f"train.arguments.optim is {optimizer}, which needs {module}, and that", module))
    for section, model in recipe.models.items():
        if model.quantization is not None:
            needs.append((f"{section}.quantization needs bitsandbytes, which", "bitsandbytes"))
        if model.attn_implementation == "flash_attention_2":
            field = f"{section}.attn_implementation is flash_attention_2, which needs a CUDA GPU and the package flash-attn, and that"
            needs.append((field, "flash_attn"))
    for field, module in needs:
        if find_spec(module) is None:
            package = {"azureml": "azureml-core"}.get(module, module.replace("_", "-"))
            raise RecipeError(f"{field} is not installed: pip install {package}, or leave it out of the recipe")
