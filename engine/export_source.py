"""One Python file out of several modules: with what a program needs of them, and nothing that needs the project."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class _Statement:
    """A statement at the top level of a module, with its comments."""

    text: str
    names: frozenset[str]
    """what it defines"""
    uses: frozenset[str]
    """names that stand in it"""
    is_import: bool


def stand_alone(program: str, parts: Mapping[str, str]) -> str:
    """The source of a program with the parts of other modules that it uses, each before what uses it.

    Args:
        program: source that imports from those modules by `from MODULE import NAME`.
        parts: source of each module that is to be put in; these import nothing from each other.

    Raises:
        ValueError: the program imports a name that a part does not define.
    """
    tree = ast.parse(program)
    docstring = f'"""{ast.get_docstring(tree, clean=False)}"""' if ast.get_docstring(tree) else ""
    first_line = program.splitlines()[:1] if program.startswith("#!") else []
    imports: set[str] = set()
    body: list[str] = []
    for module, source in parts.items():
        wanted = {
            alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module == module
            for alias in node.names
        }
        taken = _needed(_statements(source), wanted, module)
        imports.update(statement.text for statement in taken if statement.is_import)
        body += [statement.text for statement in taken if not statement.is_import]
    for statement in _statements(program):
        if not statement.is_import:
            body.append(statement.text)
        elif not statement.text.startswith(tuple(f"from {module} import" for module in parts)):
            imports.add(statement.text)
    head = sorted(imports, key=lambda line: (not line.startswith("from __future__"), line.startswith("from"), line))
    return "\n".join([*first_line, docstring, "", *head, "", "\n\n".join(body)]) + "\n"


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
        is_import = isinstance(node, ast.Import | ast.ImportFrom)
        found.append(
            _Statement(
                "\n".join(lines[start - 1 : end]),
                frozenset(_defined(node)),
                frozenset(item.id for item in ast.walk(node) if isinstance(item, ast.Name)),
                is_import,
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
