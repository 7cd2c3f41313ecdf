"""The runtime type checker behind the shape checks.

Functions whose annotations name a shape have a scope of jaxtyping at each call, in which a name of a size means one number. That costs
tens of microseconds a call, so all others are checked by beartype alone. Functions inside functions are left unchecked: they
are made anew at every call, and the check of one takes a millisecond to make.
"""

import ast
import re
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError, _import_hook, install_import_hook

#: As mypy reads the same annotations: an int may stand where a float is asked for.
checked_outside = beartype(conf=BeartypeConf(is_pep484_tower=True))
#: What a call with the wrong types or shapes raises.
VIOLATIONS = (TypeCheckError, BeartypeCallHintViolation)

_SHAPE = r"(?:Bool|Float|Float32|Int|Num|Shaped|UInt8)\["
#: A module's own name for an annotation with shapes.
_NAMED = re.compile(rf"^(\w+)(?:: TypeAlias)? = .*\b{_SHAPE}", re.MULTILINE)


def types_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose types are checked at each call while jaxtyping checks shapes; not where only type checkers import their names."""
    checked: Callable[..., Any] | None = None

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:
            return function(*arguments, **named)
        if checked is None:  # the module is complete only now
            checked = checked_outside(function) if _names_are_known(function) else function
        return checked(*arguments, **named)

    return call


def _names_are_known(function: Callable[..., Any]) -> bool:
    try:
        get_type_hints(function)
    except NameError:
        return False
    return True


class _OutsideFunctions(_import_hook.JaxtypingTransformer):
    #: Finds annotations with shapes in a function's source.
    shaped = re.compile(_SHAPE)
    _postponed = False

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:  # noqa: N802
        """Whether annotations are evaluated later: then names in them may be those of type checkers."""
        self._postponed |= node.module == "__future__" and any(one.name == "annotations" for one in node.names)
        return node

    def visit_If(self, node: ast.If) -> Any:  # noqa: N802
        """Import what a module imports for type checkers alone: its annotations name it. What imports the module in turn stays out."""
        if self._postponed and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            unknown = ast.ExceptHandler(ast.Name("ImportError", ast.Load()), None, [ast.Pass()])
            node.test = ast.Constant(True)
            node.body = [ast.Try([one], [unknown], [], []) for one in node.body]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:  # noqa: N802
        """Decorate a function of a module or a class; leave what is inside another one as it is."""
        if any(isinstance(parent, ast.FunctionDef) for parent in self._parents):
            return node
        if self.shaped.search(ast.unparse(node)):
            return super().visit_FunctionDef(node)
        decorator = ast.parse(f"__import__('{__name__}').types_alone", mode="eval").body
        node.decorator_list.append(ast.copy_location(decorator, node))
        return node


def check_shapes(package: str) -> None:
    """Check every call of a package's functions from here on; of modules that are imported after this."""
    found = find_spec(package)
    assert found is not None
    assert found.origin is not None
    sources = (file.read_text(encoding="utf-8") for file in Path(found.origin).parent.rglob("*.py"))
    names = {name for source in sources for name in _NAMED.findall(source)}
    _OutsideFunctions.shaped = re.compile("|".join([_SHAPE, *(rf"\b{name}\b" for name in sorted(names))]))
    _import_hook.JaxtypingTransformer = _OutsideFunctions
    install_import_hook(package, f"{__name__}.checked_outside")
