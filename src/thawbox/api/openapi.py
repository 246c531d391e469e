"""What `/openapi.json` says of answers, read off the routes' return annotations, which type checkers hold them to.

Rule: nothing here is asked while a request is answered; the document is made once, when somebody first asks for it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute

from thawbox import shapes
from thawbox.api import shown
from thawbox.api.answers import Answer, Carried, Media
from thawbox.api.problems import PROBLEM

Schema = dict[str, Any]
_JSON = "application/json"
_PLACE = "#/components/schemas/{name}"
_DOUBLED = "{}-Output"
"""What is also asked for, but is answered with every field: FastAPI's own word for such a one."""
_FAILURES = {"4XX": "What the caller could put right, or may try again", "5XX": "The node, CRIU or the disk failed"}


@dataclass(frozen=True, slots=True)
class Told:
    """One form that an answer of a route may have; `shape` None: nothing that JSON describes."""

    status: int
    media_type: str
    shape: Any


class Application(FastAPI):
    """FastAPI, whose document also says what is answered."""

    def openapi(self) -> Schema:
        if self.openapi_schema is None:
            self.openapi_schema = with_answers(super().openapi(), routes_of(self))
        return self.openapi_schema


def routes_of(app: FastAPI) -> list[APIRoute | APIWebSocketRoute]:
    """Every route of every resource, with its whole path."""
    routers = [router for route in app.routes if (router := getattr(route, "original_router", None)) is not None]
    found = [route for router in routers for route in router.routes]
    return [route for route in found if isinstance(route, (APIRoute, APIWebSocketRoute))]


def answers_of(route: APIRoute) -> list[Told]:
    """What a route may answer where all goes well, by its return annotation."""
    return list(_told(_annotation_of(route.endpoint), route.status_code or 200))


def _annotation_of(endpoint: Callable[..., Any]) -> Any:
    return get_type_hints(endpoint, include_extras=True)["return"]


def _told(annotation: Any, status: int) -> Iterator[Told]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for one in parts:
            yield from _told(one, status)
    elif origin is Annotated:
        media: Media = parts[1]
        for one in media.statuses or (status,):
            yield Told(one, media.media_type, media.told)
    elif origin in (Answer, Carried):
        yield Told(status, _JSON, parts[0])
        if origin is Carried:
            yield Told(202, _JSON, shown.Operation)


def with_answers(document: Schema, routes: Iterable[APIRoute | APIWebSocketRoute]) -> Schema:
    """The document, with what each route answers, and problems."""
    described = [route for route in routes if isinstance(route, APIRoute) and route.include_in_schema]
    told = {id(route): answers_of(route) for route in described}
    named = {id(one.shape): one.shape for answers in told.values() for one in answers if one.shape is not None}
    wanted: list[Any] = [shown.Problem, *named.values()]
    spread = [kind for kinds in (shapes.SPREAD, shapes.SPREAD_WHERE_KNOWN) for some in kinds.values() for kind in some]
    references, components = msgspec.json.schema_components([*wanted, *spread], ref_template=_PLACE)
    asked_for = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):  # what is wrong is answered as a problem
        asked_for.pop(unused, None)
    whole, names = _completed(components), _names_beside(asked_for, components)
    for kind in spread:  # its fields are among a shape's own
        del whole[kind.__name__]
    asked_for |= {names.get(name, name): _renamed(schema, names) for name, schema in whole.items()}
    schemas = {id(kind): _renamed(schema, names) for kind, schema in zip(wanted, references, strict=False)}
    problem = {PROBLEM: {"schema": schemas[id(shown.Problem)]}}
    for route in described:
        for method in route.methods or ():
            operation = document["paths"][route.path][method.lower()]
            operation["responses"] = _responses(told[id(route)], route.status_code or 200, schemas)
            for status, why in _FAILURES.items():
                operation["responses"][status] = {"description": why, "content": problem}
    return document


def _responses(told: list[Told], status: int, schemas: dict[int, Schema]) -> Schema:
    found: Schema = {}
    for one in told:
        response = found.setdefault(str(one.status), {"description": HTTPStatus(one.status).phrase, "content": {}})
        content, shape = response["content"], schemas.get(id(one.shape))
        if one.media_type != _JSON:
            content[one.media_type] = {"schema": {"type": "string"}} | ({"x-event-data": shape} if shape else {})
        elif one.media_type in content:
            content[one.media_type] = {"schema": {"anyOf": [content[one.media_type]["schema"], shape]}}
        else:
            content[one.media_type] = {"schema": shape}
    return found or {str(status): {"description": HTTPStatus(status).phrase}}


# Components


def _completed(components: dict[str, Schema]) -> dict[str, Schema]:
    """Whole shapes: of a dataclass every field is there; what views spread into a shape is among its own."""
    ours = {kind.__name__: kind for module in (shapes, shown) for kind in vars(module).values() if is_typeddict(kind)}
    return {name: _completed_one(schema, ours.get(name), components) for name, schema in components.items()}


def _completed_one(schema: Schema, shape: Any, components: dict[str, Schema]) -> Schema:
    found = {**schema, **({"description": inspect.cleandoc(schema["description"])} if "description" in schema else {})}
    if "properties" not in found:
        return found
    properties = _fields_of(found)
    required = set(found.get("required", ())) if shape is not None else set(properties)
    for kind in shapes.SPREAD.get(shape, ()):
        fields = _fields_of(components[kind.__name__])
        properties |= fields
        required |= set(fields)
    for kind in shapes.SPREAD_WHERE_KNOWN.get(shape, ()):
        properties = _fields_of(components[kind.__name__]) | properties
    return {**found, "properties": properties, "required": sorted(required)}


def _fields_of(schema: Schema) -> Schema:
    return {name: _without_default(one) for name, one in schema["properties"].items()}


def _without_default(schema: Schema) -> Schema:
    return {key: one for key, one in schema.items() if key != "default"}


def _names_beside(asked_for: Schema, components: Schema) -> dict[str, str]:
    """Other names for what is named like something else that is asked for."""
    doubled = [name for name in components if name in asked_for and "enum" not in components[name]]
    return {name: _DOUBLED.format(name) for name in doubled}


def _renamed(schema: Any, names: dict[str, str]) -> Any:
    if isinstance(schema, dict):
        found = {key: _renamed(one, names) for key, one in cast("Schema", schema).items()}
        name = str(found.get("$ref", "")).rpartition("/")[2]
        return {**found, "$ref": _PLACE.format(name=names[name])} if name in names else found
    if isinstance(schema, list):
        return [_renamed(one, names) for one in cast("list[object]", schema)]
    return schema
