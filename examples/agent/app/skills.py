"""What the agent can do: the tools that its DNA may name, and how a question finds the skill that it asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.context import ContextCache
from app.matrix.dna_loader import Dna, Skill
from app.matrix.embedding import Vector
from app.matrix.knowledge import Matrix, Passage

NEAR = 0.3
"""Cosine from which a passage is near enough to answer, and an example to a question."""
_ABOUT = 30
"""Passages among which all that is said of a place is looked for."""
_PLACE = re.compile(r"\b([A-Z][a-z]+ [A-Z][a-z]+)\b")


@dataclass(frozen=True)
class Turn:
    """One question of a conversation, and what was said to it."""

    question: str
    answer: str
    skill: str
    passages: tuple[Passage, ...] = field(default=())


@dataclass(frozen=True)
class Tools:
    """Everything that a tool works with."""

    dna: Dna
    matrix: Matrix
    cache: ContextCache

    def look_up(self, question: str, _before: Sequence[Turn]) -> tuple[str, tuple[Passage, ...]]:
        """The passages nearest to the question, and the answer that they give."""
        found = tuple(self.matrix.search(self.matrix.embed(question)))
        if not found or found[0].score < NEAR:
            return self.dna.persona.unsure, ()
        return self.cache.complete(question, [passage.text for passage in found]), found

    def compare(self, question: str, before: Sequence[Turn]) -> tuple[str, tuple[Passage, ...]]:
        """What is said of each place that the question names, side by side."""
        names = list(dict.fromkeys(_PLACE.findall(question)))
        if len(names) < 2:
            return self.look_up(question, before)
        wanted = self.matrix.embed(_PLACE.sub("", question))
        found = [self._of_place(name, wanted) for name in names]
        near = tuple(one for one in found if one is not None)
        return " ".join(passage.text for passage in near) or self.dna.persona.unsure, near

    def _of_place(self, name: str, wanted: Vector) -> Passage | None:
        """Of the passages about a place, the one that says most of what is wanted."""
        about = [one for one in self.matrix.search(self.matrix.embed(name), _ABOUT) if name in one.text]
        return max(about, key=lambda one: float(self.matrix.embed(one.text.replace(name, "")) @ wanted), default=None)

    def recount(self, _question: str, before: Sequence[Turn]) -> tuple[str, tuple[Passage, ...]]:
        """What the conversation was about so far: out of memory, and nowhere else."""
        asked = [turn.question for turn in before if turn.skill != "recount"]
        if not asked:
            return "You have not asked me anything yet.", ()
        return f"You asked me {len(asked)} times: " + " ".join(f"“{question}”" for question in asked), ()


class Router:
    """Finds the skill for a question: the one with the nearest example, or else the first."""

    def __init__(self, dna: Dna, matrix: Matrix) -> None:
        self._skills = [skill for skill in dna.skills for _ in skill.examples]
        self._first = dna.skills[0]
        self._matrix = matrix
        self._examples = np.stack([matrix.embed(example) for skill in dna.skills for example in skill.examples])

    def skill(self, question: str) -> Skill:
        # without its names, which say what is asked about and nothing of what is asked
        near = self._examples @ self._matrix.embed(_PLACE.sub("", question))
        best = int(np.argmax(near))
        return self._skills[best] if near[best] >= NEAR else self._first


Tool = Callable[[str, Sequence[Turn]], tuple[str, tuple[Passage, ...]]]


def tool_of(tools: Tools, skill: Skill) -> Tool:
    """The function that a skill's tool names."""
    named: dict[str, Tool] = {"look_up": tools.look_up, "compare": tools.compare, "recount": tools.recount}
    return named[skill.tool]
