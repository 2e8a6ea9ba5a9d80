"""One Python file out of several modules: with what a program needs of them, and nothing that needs the project."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Statement:
    """A statement at the top level of a module, with its comments."""

    node: ast.stmt
    text: str
    names: frozenset[str]
    """what it defines"""
    uses: frozenset[str]
    """names that stand in it"""


def stand_alone(program: str, parts: Mapping[str, str]) -> str:
    """The source of a program with what it uses of other modules, each before what uses it.

    Args:
        program: source that imports from those modules by `from MODULE import NAME`.
        parts: source of each module that is to be put in; they import nothing from each other.

    Raises:
        ValueError: the program imports a name that a part does not define.
    """
    tree = ast.parse(program)
    statements: list[_Statement] = []
    for module, source in parts.items():
        wanted = [
            alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module == module
            for alias in node.names
        ]
        statements += _needed(_statements(source), wanted, module)
    statements += _statements(program)
    first_line = program.partition("\n")[0] + "\n" if program.startswith("#!") else ""
    docstring = f'"""{ast.get_docstring(tree, clean=False)}"""\n\n'
    body, before_is_block = "", False
    for statement in statements:
        if isinstance(statement.node, ast.Import | ast.ImportFrom):
            continue
        is_block = isinstance(statement.node, ast.FunctionDef | ast.ClassDef | ast.If)
        body += ("\n\n" if is_block or before_is_block else "\n") + statement.text + "\n"
        before_is_block = is_block
    return first_line + docstring + _imports(statements, parts) + body


def _imports(statements: Sequence[_Statement], parts: Mapping[str, str]) -> str:
    """All imports but those from the parts, each once, as isort would order them."""
    used = frozenset().union(*(statement.uses for statement in statements)) | {"annotations"}
    modules: set[str] = set()
    names: dict[str, set[str]] = {}
    for node in (statement.node for statement in statements):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and str(node.module) not in parts:
            names.setdefault(str(node.module), set()).update({alias.name for alias in node.names} & used)
    future = names.pop("__future__", None)
    groups = [f"from __future__ import {', '.join(sorted(future))}\n"] if future else []
    for ours in (True, False):
        lines = [f"import {name}\n" for name in sorted(modules) if (name in sys.stdlib_module_names) is ours]
        lines += [
            f"from {name} import {', '.join(sorted(names[name]))}\n"
            for name in sorted(names)
            if (name.partition(".")[0] in sys.stdlib_module_names) is ours
        ]
        groups += ["".join(lines)] if lines else []
    return "\n".join(groups)


def _needed(statements: list[_Statement], wanted: Iterable[str], module: str) -> list[_Statement]:
    """Those that define the wanted names, and what these use, in their order."""
    home = {name: statement for statement in statements for name in statement.names}
    taken: set[int] = set()
    open_names = sorted(wanted)
    for name in open_names:
        if name not in home:
            raise ValueError(f"{module} defines no {name}")
    while open_names:
        statement = home.get(open_names.pop())
        if statement is not None and id(statement) not in taken:
            taken.add(id(statement))
            open_names += statement.uses
    return [statement for statement in statements if id(statement) in taken]


def _statements(source: str) -> list[_Statement]:
    """The statements of a module, its own docstring left out; a string below a constant belongs to the constant."""
    lines = source.splitlines()
    nodes = ast.parse(source).body
    found: list[_Statement] = []
    for number, node in enumerate(nodes):
        if _is_string(node):
            continue
        start = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))])
        while start > 1 and lines[start - 2].startswith("#") and not lines[start - 2].startswith("#!"):
            start -= 1
        documented = number + 1 < len(nodes) and isinstance(node, ast.Assign) and _is_string(nodes[number + 1])
        end = nodes[number + 1].end_lineno if documented else node.end_lineno
        found.append(
            _Statement(
                node,
                "\n".join(lines[start - 1 : end]),
                frozenset(_defined(node)),
                frozenset(item.id for item in ast.walk(node) if isinstance(item, ast.Name)),
            )
        )
    return found


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
