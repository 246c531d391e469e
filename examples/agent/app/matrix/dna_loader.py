"""The DNA: who the agent is, how it speaks, what it can do. Versioned YAML, checked before anything is done with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

SCHEMA = "thawbox.example/dna/v1"

Words = Annotated[str, Field(min_length=1, max_length=2000)]
Tool = Literal["look_up", "compare", "recount"]


class DnaError(Exception):
    """The DNA cannot be used; the text names the file, the field and what is wrong with it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Identity(_Strict):
    """Who the agent is, whatever machine it runs on."""

    name: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z .'-]{0,39}$")]
    role: Words
    home: Words


class Persona(_Strict):
    """How it speaks. `unsure` is what it says when it knows nothing near enough."""

    voice: Words
    greeting: Words
    unsure: Words


class Skill(_Strict):
    """Something it can do: a tool of the program, and questions that ask for it."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,31}$")]
    tool: Tool
    examples: Annotated[tuple[Words, ...], Field(min_length=1)]


class Dna(_Strict):
    """The whole. The first skill is used when a question resembles the examples of none."""

    dna: Literal["thawbox.example/dna/v1"]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    identity: Identity
    persona: Persona
    skills: Annotated[tuple[Skill, ...], Field(min_length=1)]

    @field_validator("skills")
    @classmethod
    def _no_name_twice(cls, skills: tuple[Skill, ...]) -> tuple[Skill, ...]:
        names = [skill.name for skill in skills]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"there are several skills named {', '.join(doubled)}")
        return skills


@dataclass(frozen=True)
class Loaded:
    """A DNA with the digest of the bytes that it was read from."""

    dna: Dna
    digest: str


def load_dna(path: Path) -> Loaded:
    """Read and check a DNA file; raises DnaError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DnaError(f"{path}: {error.strerror}") from None
    try:
        document = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise DnaError(f"{path}: this is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise DnaError(f"{path}: a mapping with dna, version, identity, persona and skills is wanted")
    if document.get("dna") != SCHEMA:
        raise DnaError(f"{path}: dna: {document.get('dna')!r} is another schema than {SCHEMA}, which this agent reads")
    try:
        dna = Dna.model_validate(document)
    except ValidationError as error:
        raise DnaError(f"{path}: " + "; ".join(_in_words(one) for one in error.errors())) from None
    return Loaded(dna, hashlib.sha256(content).hexdigest())


def _in_words(error: ErrorDetails) -> str:
    place, said = ".".join(str(part) for part in error["loc"]), error["msg"]
    return f"{place}: {said[:1].lower()}{said[1:]}"
