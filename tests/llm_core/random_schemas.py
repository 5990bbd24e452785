"""Random JSON schemas: nested, with enums, bounds, patterns, formats, unions and references, some of them recursive."""

import random
from typing import Any

PATTERNS = (
    r"^[a-z]{2,8}$",
    r"^[A-Z]{3}-\d{4}$",
    r"^\d{4}-\d{2}-\d{2}$",
    r"^(yes|no|maybe)$",
    r"^#[0-9a-f]{6}$",
    r"\.(pdf|txt)$",
    r"^[^@ ]+@[a-z]+\.(com|org)$",
    r"^v\d+(\.\d+){1,2}$",
    r"^a+b*c$",
    r"^\w+( \w+){0,3}$",
)
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "hostname")
WORDS = "name title age city colour tags size price items left right kind state score note owner".split()
CHOICES: tuple[Any, ...] = ("red", "green", "blå", 'a "quoted" word', "", 1, 2.5, -3, True, None, ["x", 1], {"k": "v"})


class RandomSchema:
    """One schema of a seed; `schema` has what its references need."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._definitions: dict[str, Any] = {}
        n_definitions = self._random.choice((0, 0, 1, 2))
        self._names: list[str] = []
        for name in [f"def{number}" for number in range(n_definitions)]:
            self._definitions[name] = self._object(2, recursive=name)  # else only those before it, so that it ends
            self._names.append(name)
        self.schema = self._object(3) if self._random.random() < 0.7 else self._any(3)
        if self._definitions:
            self.schema = {**self.schema, "$defs": self._definitions}

    def _any(self, depth: int) -> dict[str, Any]:
        kinds = [self._string, self._string, self._integer, self._number, self._enum, self._simple]
        if depth > 0:
            kinds += [self._object, self._object, self._array, self._array, self._union]
            kinds += [self._reference] * 2 if self._names else []
        return self._random.choice(kinds)(depth)

    def _object(self, depth: int, recursive: str | None = None) -> dict[str, Any]:
        names = self._random.sample(WORDS, self._random.randint(1, 4))
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self._any(depth - 1) for name in names},
            "required": [name for name in names if self._random.random() < 0.7],
        }
        if recursive:
            schema["properties"]["next"] = {"anyOf": [{"$ref": f"#/$defs/{recursive}"}, {"type": "null"}]}
            schema["required"].append("next")
        others = self._random.random()
        if others < 0.6:
            schema["additionalProperties"] = False
        elif others < 0.75:
            schema["additionalProperties"] = self._any(0)
        elif others < 0.85:
            schema["patternProperties"] = {"^x-[a-z]+$": self._any(0)}
            schema["additionalProperties"] = False
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array", "items": self._any(depth - 1)}
        if self._random.random() < 0.6:
            schema["minItems"] = self._random.randint(0, 3)
        if self._random.random() < 0.6:
            schema["maxItems"] = schema.get("minItems", 0) + self._random.randint(0, 3)
        if self._random.random() < 0.2:
            schema["prefixItems"] = [self._any(0), self._any(0)]
        return schema

    def _union(self, depth: int) -> dict[str, Any]:
        choice = self._random.random()
        if choice < 0.4:
            return {"anyOf": [self._any(depth - 1), self._any(depth - 1), {"type": "null"}]}
        if choice < 0.7:
            kinds = self._random.sample(WORDS, 2)
            return {"oneOf": [self._tagged(kind, depth) for kind in kinds]}
        return {
            "allOf": [{"type": "object", "properties": {"a": self._any(0)}, "required": ["a"]}, self._open_object()]
        }

    def _tagged(self, kind: str, depth: int) -> dict[str, Any]:
        properties = {"kind": {"const": kind}, "value": self._any(depth - 1)}
        return {
            "type": "object",
            "properties": properties,
            "required": ["kind", "value"],
            "additionalProperties": False,
        }

    def _open_object(self) -> dict[str, Any]:
        return {"type": "object", "properties": {"b": self._any(0), "c": self._any(0)}, "required": ["c"]}

    def _reference(self, depth: int) -> dict[str, Any]:
        return {"$ref": f"#/$defs/{self._random.choice(self._names)}"}

    def _string(self, depth: int) -> dict[str, Any]:
        choice = self._random.random()
        if choice < 0.3:
            return {"type": "string", "pattern": self._random.choice(PATTERNS)}
        if choice < 0.45:
            return {"type": "string", "format": self._random.choice(FORMATS)}
        schema: dict[str, Any] = {"type": "string"}
        if choice < 0.75:
            schema["minLength"] = self._random.randint(0, 12)
        if 0.6 < choice < 0.9:
            schema["maxLength"] = schema.get("minLength", 0) + self._random.randint(0, 20)
        return schema

    def _integer(self, depth: int) -> dict[str, Any]:
        return self._bounded({"type": "integer"}, lambda: self._random.randint(-1000, 1000), (2, 3, 5, 10))

    def _number(self, depth: int) -> dict[str, Any]:
        return self._bounded({"type": "number"}, lambda: round(self._random.uniform(-50, 50), 2), (0.5, 0.25, 4))

    def _bounded(self, schema: dict[str, Any], draw: Any, factors: tuple[float, ...]) -> dict[str, Any]:
        low = draw()
        if self._random.random() < 0.5:
            schema[self._random.choice(("minimum", "exclusiveMinimum"))] = low
        if self._random.random() < 0.5:
            schema[self._random.choice(("maximum", "exclusiveMaximum"))] = low + self._random.randint(20, 2000)
        if self._random.random() < 0.15:
            schema["multipleOf"] = self._random.choice(factors)
        return schema

    def _enum(self, depth: int) -> dict[str, Any]:
        if self._random.random() < 0.3:
            return {"const": self._random.choice(CHOICES)}
        return {"enum": self._random.sample(CHOICES, self._random.randint(1, 4))}

    def _simple(self, depth: int) -> dict[str, Any]:
        return self._random.choice(({"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}))
