"""What is wrong with a config, said in plain words: the checks of single values.

Everything here works on the document as written, so that one mistake does not hide the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cellarer.config.lines import KeyPath
from cellarer.config.models import Config
from cellarer.config.values import in_words

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "tuple_type": "a list",
}
"""What pydantic's error types mean to a person."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it is, and what would be right."""

    path: KeyPath
    message: str

    @property
    def subject(self) -> str:
        """The path as people write it: `vault.replicas[1].url`."""
        text = ""
        for key in self.path:
            if isinstance(key, int):
                text += f"[{key}]"
            else:
                text += ("." if text else "") + (key if _BARE_KEY.fullmatch(key) else f'"{key}"')
        return text


def problems_of(error: ValidationError, document: dict[str, Any]) -> list[Problem]:
    """What pydantic found, as problems of this document."""
    return [
        _problem(details, document)
        for details in error.errors(include_url=False)
        # Pydantic calls a list too short when its members are wrong; they are told one by one.
        if details["type"] != "too_short" or not details["input"]
    ]


def with_nearest_kinds(document: dict[str, Any]) -> dict[str, Any]:
    """The document with each misspelt kind of source put right, to judge the rest of the source."""
    sources = document.get("sources")
    if not isinstance(sources, dict):
        return document
    meant = dict(sources)
    for name, source in sources.items():
        kind = source.get("kind") if isinstance(source, dict) else None
        if isinstance(kind, str) and (near := get_close_matches(kind, _kinds(), 1, cutoff=0.5)):
            meant[name] = source | {"kind": near[0]}
    return document | {"sources": meant}


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The nearest known names, or all of them, as the end of a message."""
    names = sorted(known)
    near = get_close_matches(wrong, names, 1, cutoff=0.5)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known are {', '.join(names)}" if names else ""


def _problem(details: ErrorDetails, document: dict[str, Any]) -> Problem:
    kind = details["type"]
    path = _path_in_document(details["loc"], kind)
    context = details.get("ctx", {})
    if kind == "value_error":
        return Problem(path, str(context["error"]))
    if kind == "missing":
        return Problem(path[:-1], f'"{path[-1]}" is missing')
    if kind == "extra_forbidden":
        return Problem(path, f"unknown key{did_you_mean(str(path[-1]), _keys_at(path, document))}")
    if kind == "union_tag_not_found":
        return Problem(path, f'"kind" is missing; known are {", ".join(_kinds())}')
    if kind == "union_tag_invalid":
        wrong = str(context["tag"])
        return Problem((*path, "kind"), f'unknown kind "{wrong}"{did_you_mean(wrong, _kinds())}')
    if kind == "literal_error":
        known = ", ".join(f'"{choice}"' for choice in _choices(path, document))
        return Problem(path, f"expected one of {known}")
    if kind == "greater_than_equal":
        return Problem(path, f"must be at least {context['ge']}")
    if kind == "too_short":
        return Problem(path, "needs at least one entry")
    if kind in _EXPECTED:
        return Problem(path, f"expected {_EXPECTED[kind]}, found {in_words(details['input'])}")
    return Problem(path, details["msg"])


def _path_in_document(location: tuple[int | str, ...], kind: str) -> KeyPath:
    """Pydantic's location without what it puts in: the chosen kind of a source, "[key]"."""
    if location[:1] == ("sources",) and len(location) > 2:
        location = location[:2] + location[3:]
    is_about_key = location[-1] == "[key]" and kind != "extra_forbidden"
    return location[:-1] if is_about_key else location


def _kinds() -> list[str]:
    return sorted(_source_models())


def _source_models() -> dict[str, type[BaseModel]]:
    sources = Config.model_fields["sources"].annotation
    union = get_args(get_args(sources)[1])[0]
    return {get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(union)}


def _keys_at(path: KeyPath, document: dict[str, Any]) -> list[str]:
    """The known keys of the table that holds the last key of `path`."""
    model = _model_at(path[:-1], document)
    return [field.alias or name for name, field in model.model_fields.items()]


def _choices(path: KeyPath, document: dict[str, Any]) -> tuple[Any, ...]:
    field = _model_at(path[:-1], document).model_fields[str(path[-1])]
    return get_args(field.annotation)


def _model_at(path: KeyPath, document: dict[str, Any]) -> type[BaseModel]:
    """The model that judges the table at `path`."""
    if path[:1] == ("sources",):
        model = _source_models()[document["sources"][path[1]]["kind"]]
        rest = path[2:]
    else:
        model, rest = Config, path
    annotation: Any = model
    for key in rest:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields = annotation.model_fields
            annotation = next(
                field.annotation for name, field in fields.items() if key in (name, field.alias)
            )
        else:
            annotation = _member(annotation)
        annotation = _plain(annotation)
    return cast(type[BaseModel], annotation)


def _plain(annotation: Any) -> Any:
    """The annotation without `Annotated` and `| None`."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if type(None) in get_args(annotation):
        return _plain(next(arg for arg in get_args(annotation) if arg is not type(None)))
    return annotation


def _member(annotation: Any) -> Any:
    """What a mapping or a tuple holds."""
    arguments = get_args(annotation)
    return arguments[1] if get_origin(annotation) is dict else arguments[0]
