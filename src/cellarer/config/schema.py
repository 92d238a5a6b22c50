"""The JSON Schema of the config, for editors that check and complete while one types."""

from __future__ import annotations

from typing import Any

from cellarer.config.models import Config


def json_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) that accepts what `load` accepts, key by key.

    Rules across tables, such as known class names, are beyond a schema.
    """
    schema: dict[str, Any] = _for_toml(Config.model_json_schema(by_alias=True))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "cellarer.toml",
    }


def _for_toml(node: Any) -> Any:
    """TOML has no null: what may be absent is just not required."""
    if isinstance(node, list):
        return [_for_toml(member) for member in node]
    if not isinstance(node, dict):
        return node
    node = {key: _for_toml(value) for key, value in node.items()}
    choices = node.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        others = [choice for choice in choices if choice != {"type": "null"}]
        del node["anyOf"]
        node = {**others[0], **node} if len(others) == 1 else {**node, "anyOf": others}
    if "default" in node and node["default"] is None:
        del node["default"]
    if "patternProperties" in node:
        node["additionalProperties"] = False
    # Titles that pydantic makes from field names say nothing new.
    if isinstance(node.get("title"), str):
        del node["title"]
    return node
