"""Which parameters of the student learn, and how fast."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch.nn import Parameter
from torch.optim import Optimizer

from switchkd.models import Pathway


def freeze(student: Pathway, names: Sequence[str]) -> None:
    """Freeze parts, or modules and parameters by their dotted names in the model; `*` stands for any text, dots too.

    Raises:
        ValueError: for a name that matches nothing.
    """
    for name in names:
        if name in student.family.parts:
            for parameter in student.part_parameters(name).values():
                parameter.requires_grad_(False)
            continue
        # tied ones have several names
        all_modules = student.model.named_modules(remove_duplicate=False)
        all_parameters = student.model.named_parameters(remove_duplicate=False)
        modules = [module for path, module in all_modules if fnmatchcase(path, name)]
        parameters = [parameter for path, parameter in all_parameters if fnmatchcase(path, name)]
        if not modules and not parameters:
            raise ValueError(
                f"student.freeze: nothing in the model is called {name!r}. It has the parts {', '.join(student.family.parts)}, and modules "
                f"such as {next(path for path, _ in student.model.named_parameters()).rpartition('.')[0]}"
            )
        for thing in (*modules, *parameters):
            thing.requires_grad_(False)


def set_rates(optimizer: Optimizer, student: Pathway, rates: Mapping[str, float]) -> None:
    """Split the optimizer's groups so that the parts in `rates` have learning rates of their own."""
    rate_of = {
        id(parameter): rate for part, rate in rates.items() for parameter in student.part_parameters(part).values()
    }
    groups = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rate_of.get(id(parameter), group["lr"]), []).append(parameter)
        groups += [{**group, "params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
    optimizer.param_groups[:] = groups
