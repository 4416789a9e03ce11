"""How an author's class becomes a chunnel type: what it says about itself, defaults for what it does not.

    @register_chunnel("rot13", wire="rot13/1")
    class Rot13(Pipe):
        def down(self, item): ...

or, as in the paper, `register_chunnel("reliable", ReliableChunnel, endpoints="both", scope="application")`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, overload

from bertha_socket.chunnels import _registered
from bertha_socket.chunnels._types import (
    DEFAULT_LAYER,
    ENDPOINTS,
    NO_WIRE,
    PYTHON_PRIORITY,
    ChunnelArgumentError,
    ChunnelType,
    Implementation,
    Interface,
    Parameter,
    Pipe,
    wires,
)

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_WHERE: Final = ("application", "host")
P = TypeVar("P", bound=type[Pipe])


def type_of_class(
    cls: type[Pipe],
    name: str | None = None,
    *,
    endpoints: str | None = None,
    scope: str | None = None,
    wire: str | Sequence[str] | None = None,
    priority: int | None = None,
    implementation: str | None = None,
) -> ChunnelType:
    """The chunnel type that a class of pipes is.  Raises ChunnelArgumentError.

    What is not given is looked up in the class: `name`, `summary` (else its docstring's first line),
    `endpoints`, `scope`, `wire`, `priority`, `parameters`, `upper`, `lower`, `layer`.
    """

    def said(what: str, given: Any, default: Any) -> Any:
        return given if given is not None else getattr(cls, what, default)

    title = said("name", name, cls.__name__.lower())
    if not isinstance(title, str) or not _NAME.fullmatch(title):
        raise ChunnelArgumentError(f"{title!r} is no name for a chunnel: letters, digits and _ only")
    ends = _text(said("endpoints", endpoints, "both"))
    where = _text(said("scope", scope, "application"))
    if ends not in ENDPOINTS:
        raise ChunnelArgumentError(
            f"{title}: endpoints is {ends!r}, and should be one of {', '.join(ENDPOINTS)}"
        )
    if where not in _WHERE:
        raise ChunnelArgumentError(f"{title}: a chunnel in Python runs at scope application or host")
    default_wire = NO_WIRE if ends != "both" else f"{title}/1"
    wire_names = said("wire", wire, default_wire)
    names = (wire_names,) if isinstance(wire_names, str) else tuple(wire_names)
    parameters = tuple(getattr(cls, "parameters", ()))
    if not all(isinstance(p, Parameter) for p in parameters):
        raise ChunnelArgumentError(f"{title}: parameters should be a tuple of Parameter")
    summary = getattr(cls, "summary", None) or (cls.__doc__ or title).strip().splitlines()[0]
    return ChunnelType(
        name=title,
        summary=summary,
        parameters=parameters,
        upper=Interface(getattr(cls, "upper", Interface.STREAM)),
        lower=Interface(getattr(cls, "lower", Interface.STREAM)),
        endpoints=ends,
        layer=int(getattr(cls, "layer", DEFAULT_LAYER)),
        wire=", ".join(names),
        implementations=(
            Implementation(
                name=implementation or "python",
                type=title,
                wires=wires(*names),
                where=where,
                endpoints=ends,
                priority=int(said("priority", priority, PYTHON_PRIORITY)),
                make=cls,
            ),
        ),
    )


def _text(value: Any) -> str:
    """Enums are as good as their values."""
    return str(getattr(value, "value", value)).lower()


@overload
def register_chunnel(name: P, /) -> P: ...
@overload
def register_chunnel(name: str | None = None, /, **said: Any) -> Callable[[P], P]: ...
@overload
def register_chunnel(name: str, cls: P, /, endpoints: Any = None, scope: Any = None, **said: Any) -> P: ...


def register_chunnel(
    name: Any = None, cls: Any = None, /, endpoints: Any = None, scope: Any = None, **said: Any
) -> Any:
    """Makes a class of pipes known as a chunnel type: a decorator, or the paper's call.

    In a program under bertha-run, or with `bertha_socket.monkey` or `.socket`, the agent is told of it too so
    that a policy's rules may name it (and is waited for, two seconds at the most); not of a class of the main
    script, or within a function.

    Raises ChunnelArgumentError when what the class says about itself cannot be.
    """
    from bertha_socket.chunnels._registry import register

    ends = _text(endpoints) if endpoints is not None else None
    where = _text(scope) if scope is not None else None

    def add(pipe: type[Pipe], title: str | None) -> type[Pipe]:
        made = register(type_of_class(pipe, title, endpoints=ends, scope=where, **said))
        _registered.note(made.name, pipe)
        return pipe

    if isinstance(name, type):
        return add(name, None)
    if cls is not None:
        return add(cls, name)
    return lambda pipe: add(pipe, name)


def chunnel_type_of(what: Any, name: str | None = None) -> ChunnelType:
    """The type that an entry point, or a policy's [[chunnel]], names.  Raises ChunnelArgumentError."""
    if isinstance(what, type) and issubclass(what, Pipe):
        return type_of_class(what, name if getattr(what, "name", None) is None else None)
    if callable(what) and not isinstance(what, ChunnelType):
        return chunnel_type_of(what(), name)
    if not isinstance(what, ChunnelType):
        raise ChunnelArgumentError(f"{name}: neither a ChunnelType nor a class of Pipe")
    return what


def load_chunnel(source: str, name: str | None = None) -> ChunnelType:
    """The type that "module:Class" or "/path/to/file.py:Class" names, registered.

    What its module has said of it, when it was imported, to `register_chunnel` holds.

    Raises ChunnelArgumentError: there is no such thing, or importing it raised.
    """
    from bertha_socket.chunnels._registry import known, register

    place, colon, attribute = source.rpartition(":")
    if not colon or not place or not attribute:
        raise ChunnelArgumentError(f"{source!r} should be module:Class, or /path/to/file.py:Class")
    try:
        module = _module_of(place)
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ChunnelArgumentError(f"{source}: {type(error).__name__}: {error}") from error
    said = known().get(name) if name is not None else None
    if said is not None and any(i.make is found for i in said.implementations):
        return said
    return register(chunnel_type_of(found, name))


def _module_of(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    title = "bertha_chunnel_" + re.sub(r"\W", "_", os.path.abspath(place))
    if title in sys.modules:
        return sys.modules[title]
    spec = importlib.util.spec_from_file_location(title, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[title]
        raise
    return module
