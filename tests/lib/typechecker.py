"""The runtime type checker behind the shape checks.

Functions inside functions are left unchecked: they are made anew at every call, and the check of one takes a millisecond to make.
"""

import ast
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import _import_hook, install_import_hook

#: As mypy reads the same annotations: an int may stand where a float is asked for.
checked_outside = beartype(conf=BeartypeConf(is_pep484_tower=True))


class _OutsideFunctions(_import_hook.JaxtypingTransformer):
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
        inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        return node if inside else super().visit_FunctionDef(node)


def check_shapes(package: str) -> None:
    """Check every call of a package's functions from here on; of modules that are imported after this."""
    _import_hook.JaxtypingTransformer = _OutsideFunctions
    install_import_hook(package, f"{__name__}.checked_outside")
