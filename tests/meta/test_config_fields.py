"""Every field of every config is read by the code that gets the config: a setting that changes nothing is a lie.

Names alone prove little: `width` is read somewhere in any case. So the types of the receivers are followed, as far as
annotations, assignments and constructors tell them, and only a read from that very class counts.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import flowtok

SKIPPED = ("__post_init__",)  # a check is not a use


@dataclass
class Known:
    """What the sources say of one class."""

    is_config: bool
    bases: list[str]
    fields: dict[str, ast.expr] = field(default_factory=dict)
    attributes: dict[str, str | None] = field(default_factory=dict)


class Reads:
    """Which fields are read from which config class."""

    def __init__(self, sources: list[str]) -> None:
        trees = [ast.parse(source) for source in sources]
        self.classes: dict[str, Known] = {}
        self.returned: dict[str, ast.expr] = {}
        self.read: set[tuple[str, str]] = set()
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self.classes[node.name] = self._class(node)
                elif isinstance(node, ast.FunctionDef) and node.returns is not None:
                    self.returned[node.name] = node.returns
        for _ in range(3):  # what one function assigns to self, another one reads
            for tree in trees:
                self._body(tree, {}, None)

    def unread(self) -> list[str]:
        return [
            f"{name}.{field}"
            for name, known in self.classes.items()
            if known.is_config
            for field in known.fields
            if (name, field) not in self.read
        ]

    def _class(self, node: ast.ClassDef) -> Known:
        made = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        known = Known(
            is_config=made and node.name.endswith("Config"),
            bases=[base.id for base in node.bases if isinstance(base, ast.Name)],
        )
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                known.fields[item.target.id] = item.annotation
            elif isinstance(item, ast.FunctionDef) and not known.is_config:
                # A property or a method gives what it returns; a constructor's argument is kept under its name.
                given = item.args.args if item.name == "__init__" else []
                told = {item.name: item.returns, **{argument.arg: argument.annotation for argument in given}}
                known.fields |= {name: kind for name, kind in told.items() if kind and name not in known.fields}
            if isinstance(item, ast.FunctionDef) and isinstance(item.returns, ast.Name) and item.returns.id == "Self":
                known.attributes[item.name] = node.name
        return known

    def _named(self, annotation: ast.AST | None) -> str | None:
        """The first class of ours that an annotation names; a sequence counts as what it holds."""
        for node in ast.walk(annotation) if annotation is not None else ():
            name = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
            if isinstance(name, str) and name.strip("'\"") in self.classes:
                return name.strip("'\"")
        return None

    def _attribute(self, owner: str | None, name: str) -> str | None:
        known = self.classes.get(owner or "")
        if known is None:
            return None
        if known.attributes.get(name) is not None:
            return known.attributes[name]
        if name in known.fields and (found := self._named(known.fields[name])) is not None:
            return found
        return next((found for base in known.bases if (found := self._attribute(base, name))), None)

    def _type(self, node: ast.AST | None, scope: dict[str, str | None]) -> str | None:
        """The class of an expression, where it can be told."""
        match node:
            case ast.Name(id=name):
                return scope.get(name)
            case ast.Attribute(value=value, attr=name):
                return self._attribute(self._type(value, scope), name)
            case ast.Call(func=ast.Name(id=name), args=args):
                if name in self.classes:
                    return name
                if name == "replace" and args:
                    return self._type(args[0], scope)
                return self._named(self.returned.get(name)) or self._class_given(args)
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=args):
                return self._attribute(self._type(value, scope), name) or self._class_given(args)
            case ast.Subscript(value=value) | ast.Await(value=value):
                return self._type(value, scope)
            case ast.IfExp(body=body, orelse=orelse):
                return self._type(body, scope) or self._type(orelse, scope)
            case ast.BoolOp(values=values) | ast.Tuple(elts=values) | ast.List(elts=values):
                return next((found for value in values if (found := self._type(value, scope))), None)
        return None

    def _class_given(self, arguments: list[ast.expr]) -> str | None:
        """For calls such as `record.part("velocity", VelocityTransformerConfig)`, which return what they are given."""
        names = [node.id for node in arguments if isinstance(node, ast.Name)]
        return next((name for name in names if name in self.classes), None)

    def _bindings(self, node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                yield from zip(targets, values, strict=False)
            case ast.Assign(targets=targets, value=value):
                yield from ((target, value) for target in targets)
            case ast.NamedExpr(target=target, value=value):
                yield target, value
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                yield target, value

    def _body(self, node: ast.AST, scope: dict[str, str | None], owner: str | None) -> None:
        """Follows a module, a class or a function with what is in scope there."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                self._body(child, dict(scope), child.name)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                if child.name not in SKIPPED:
                    self._function(child, dict(scope), owner)
            else:
                self._expression(child, scope, owner)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: dict[str, str | None], owner: str | None):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            scope[argument.arg] = self._named(argument.annotation)
        if owner is not None and arguments and arguments[0].arg == "self":
            scope["self"] = owner
        self._body(node, scope, owner)

    def _expression(self, node: ast.AST, scope: dict[str, str | None], owner: str | None) -> None:
        for target, value in self._bindings(node):
            found = self._type(value, scope)
            if isinstance(target, ast.Name) and found is not None:
                scope[target.id] = found
            elif isinstance(target, ast.Attribute) and found is not None:
                holder = self._type(target.value, scope)
                if holder is not None:
                    self.classes[holder].attributes[target.attr] = found
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            scope[node.target.id] = self._named(node.annotation)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            kind = self._type(node.value, scope)
            if kind is not None and self.classes[kind].is_config:
                self.read.add((kind, node.attr))
        self._body(node, scope, owner)


@pytest.fixture(scope="module")
def sources() -> list[str]:
    folder = Path(flowtok.__file__).parent
    return [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))]


def test_every_config_field_is_read_from_its_config(sources: list[str]) -> None:
    reads = Reads(sources)
    assert sum(known.is_config for known in reads.classes.values()) > 10, "the search for configs finds none"
    assert reads.unread() == []


def test_a_field_that_nobody_reads_is_found_though_others_have_its_name(sources: list[str]) -> None:
    """Else the test above is green whatever is added."""
    head = "class VelocityTransformerConfig:\n"
    assert sum(head in source for source in sources) == 1
    dead = [source.replace(head, f"{head}    learning_rate: float = 0.0\n    name: str = ''\n") for source in sources]
    found = ["VelocityTransformerConfig.learning_rate", "VelocityTransformerConfig.name"]
    assert sorted(Reads(dead).unread()) == found


def test_a_check_alone_is_not_a_use() -> None:
    source = """
@dataclass
class NetConfig:
    width: int
    depth: int

    def __post_init__(self):
        assert self.width > 0 and self.depth > 0

class Net:
    def __init__(self, config: NetConfig):
        self.config = config

    def forward(self):
        return self.config.width
"""
    assert Reads([source]).unread() == ["NetConfig.depth"]
