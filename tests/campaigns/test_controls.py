"""A control removes a guard by code that replaces a function: the function must exist.

A renamed function would otherwise leave the guard in place, and the control would prove nothing.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent


def _preludes() -> Iterator[tuple[str, ast.Module]]:
    """All strings in the campaigns that are programs which replace attributes."""
    for file in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            try:
                program = ast.parse(node.value)
            except SyntaxError:
                continue
            imports = any(isinstance(line, ast.Import | ast.ImportFrom) for line in program.body)
            if imports and [*_replaced(program)]:
                yield f"{file.stem}:{node.lineno}", program


def _replaced(program: ast.Module) -> Iterator[ast.Attribute]:
    for line in program.body:
        if isinstance(line, ast.Assign):
            for target in line.targets:
                for element in target.elts if isinstance(target, ast.Tuple) else [target]:
                    # `module` belongs to fleet.patch_on_import; such code has no missing names,
                    # or its campaign fails at once.
                    if isinstance(element, ast.Attribute) and "module." not in ast.unparse(element):
                        yield element


PRELUDES = dict(_preludes())


def test_there_are_controls() -> None:
    assert len(PRELUDES) >= 20


@pytest.mark.parametrize("name", PRELUDES)
def test_what_a_control_replaces_exists(name: str) -> None:
    names: dict[str, Any] = {}
    for line in PRELUDES[name].body:
        is_import = isinstance(line, ast.Import | ast.ImportFrom)
        is_alias = (
            isinstance(line, ast.Assign)
            and isinstance(line.targets[0], ast.Name)
            and isinstance(line.value, ast.Attribute)
        )
        if is_import or is_alias:
            exec(compile(ast.Module([line], []), name, "exec"), names)  # noqa: S102
    for target in _replaced(PRELUDES[name]):
        owner = eval(ast.unparse(target.value), names)  # noqa: S307
        assert hasattr(owner, target.attr), ast.unparse(target)
