"""The JSON Schema agrees with the loader."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from cellarer.config import json_schema

ROOT = Path(__file__).parents[2]


def validator() -> Draft202012Validator:
    return Draft202012Validator(json_schema())


def example() -> dict[str, Any]:
    return tomllib.loads((ROOT / "examples" / "pourtrait" / "cellarer.toml").read_text())


def test_the_schema_is_a_schema_and_is_json() -> None:
    schema = json.loads(json.dumps(json_schema()))
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert '"null"' not in json.dumps(schema)


def test_the_example_is_valid() -> None:
    assert [error.message for error in validator().iter_errors(example())] == []


def test_every_key_is_described() -> None:
    schema = json_schema()
    for name, model in schema["$defs"].items():
        for key, value in model["properties"].items():
            assert key == "kind" or "description" in value or "$ref" in value, f"{name}.{key}"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("vault", "identity"), "AGE-SECRET-KEY-1"),
        (("vault", "identity"), {"env": "A", "file": "b"}),
        (("vault", "write_quorum"), 0),
        (("vault", "replicas"), []),
        (("vault", "replica"), []),
        (("objectives", "rto"), {"full": 6}),
        (("objectives", "latency_p95"), ""),
        (("classes", "critical"), {"rpo": "15 min"}),
        (("sources", "database", "kind"), "postgres"),
        (("sources", "database", "evrey"), "6h"),
        (("sources", "database", "class"), {"critical": "public.*"}),
        (("sources", "not a name"), {"kind": "files", "paths": ["/"]}),
        (("retention", "daily"), -1),
    ],
)
def test_what_the_loader_refuses_the_schema_refuses(path: tuple[str, ...], value: Any) -> None:
    document = example()
    table = document
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    assert list(validator().iter_errors(document))
