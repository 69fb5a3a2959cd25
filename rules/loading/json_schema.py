"""JSON Schema (draft-07) of the rule language for editors, generated from the tables of `rules.loading.fields`.

The schema is a help for editing: `exeat check` may still refuse a file that the schema accepts.
"""

from collections.abc import Iterable
from typing import Final

from rules.loading.cases import TEST
from rules.loading.conditions import APPROVAL, FOR, GIT, HTTP, LIMITS
from rules.loading.fields import Schema, Section
from rules.loading.rule_file import FILE, INCLUDE, SETTINGS
from rules.loading.rule_schema import EXCEPT, LIST, RULE
from rules.loading.sandbox_schema import COMMAND, ENVIRONMENT, MERGE, RESOURCES, SANDBOX
from rules.loading.secret_schema import FROM, IN, NEEDED, SECRET
from rules.secrets import SlotKind

ADDRESS: Final = "https://exeat.example/rules.schema.json"
_SECTIONS: Final = (
    INCLUDE, SETTINGS, RULE, EXCEPT, LIST, HTTP, GIT, FOR, LIMITS, APPROVAL, TEST, SANDBOX, MERGE, ENVIRONMENT,
    RESOURCES, COMMAND, SECRET, FROM, IN,
)  # fmt: skip
_CERTIFICATE: Final = SlotKind.CLIENT_CERTIFICATE.value  # which alone has no placeholder
_MORE: Final[dict[str, Schema]] = {  # constraints on several keys together
    "include": {"oneOf": [{"required": ["file"]}, {"required": ["preset"]}]},
    "limits": {"minProperties": 1},
    "list": {"required": ["list"]},
    "secret": {
        "required": [*NEEDED],
        "anyOf": [{"required": ["as"]}, {"properties": {"in": {"enum": [_CERTIFICATE, [_CERTIFICATE]]}}}],
    },
}


def rule_file_schema() -> Schema:
    """Return the schema of rule files."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": ADDRESS,
        "title": "Exeat rule file",
        **_object(FILE, ("version",)),
        "definitions": {each.name: {**_object(each, each.needed), **_MORE.get(each.name, {})} for each in _SECTIONS},
    }


def _object(section: Section, required: Iterable[str]) -> Schema:
    """Return the schema of a section, which allows its keys and no others."""
    properties: Schema = {}
    for word, key in section.keys.items():
        # draft-07 ignores everything next to a `$ref`.
        schema = {"allOf": [key.schema]} if "$ref" in key.schema else key.schema
        properties[word] = {"description": key.says, **schema}
    found: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    if required:
        found["required"] = list(required)
    if section.empty or section.single:
        found["minProperties"] = 1
    return {**found, "maxProperties": 1} if section.single else found
