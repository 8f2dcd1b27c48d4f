"""Task check: multiple-choice items answered by two servers, each by the log-likelihood of the choices; who flips.

As lm-eval's ``multiple_choice`` with ``local-completions``: the choice whose tokens, after the question, have the
largest summed log-probability is the answer (its ``acc``). This file does not know who serves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcp_core.errors import InputError, Unscorable
from mcp_core.evaluation.paired import Interval, mcnemar_p, mean_difference
from mcp_core.evaluation.prompt_scores import PromptScores, dialect_of, score
from mcp_core.recipe import validation_message

if TYPE_CHECKING:
    from mcp_core.evaluation.endpoints import Endpoint

__all__ = ["AnsweredItem", "TaskCheck", "TaskItem", "answers", "builtin_items", "compare", "read_items"]

BUILTIN = "easy choices (built in)"
_FORM = 'A line is {"question": "...", "choices": ["...", "..."], "answer": 0}; "context" replaces the question.'
OnItem = Callable[[int], None]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskItem(_Value):
    """One question. ``context`` is what stands before each choice and the space after it."""

    context: str = Field(min_length=1)
    choices: tuple[str, ...] = Field(min_length=2)
    answer: int = Field(ge=0, description="Index of the right choice.")


class AnsweredItem(_Value):
    """One item and the index of the choice that each side took."""

    item: TaskItem
    reference: int
    candidate: int

    @property
    def flip(self) -> str | None:
        """ "lost" when only the reference was right, "won" when only the candidate was, else None."""
        before, after = self.reference == self.item.answer, self.candidate == self.item.answer
        return None if before == after else ("lost" if before else "won")


class TaskCheck(_Value):
    """The same items answered by a reference and a candidate."""

    name: str = Field(description="The built-in set, or the file's name.")
    reference: str = Field(description="What the reference is, in words.")
    candidate: str = Field(description="What the candidate is, in words.")
    items: tuple[AnsweredItem, ...]
    chance: float = Field(description="Accuracy of guessing.")
    reference_accuracy: float
    candidate_accuracy: float
    difference: Interval = Field(description="Candidate's accuracy minus the reference's.")
    lost: int = Field(description="Items that only the reference got right.")
    won: int = Field(description="Items that only the candidate got right.")
    p: float = Field(description="Exact McNemar test: probability of so uneven flips if neither way is likelier.")


def builtin_items() -> tuple[TaskItem, ...]:
    """Sixty easy questions with four choices, written for MCP."""
    return read_items(BUILTIN, (files("mcp_core") / "data" / "easy-choices.jsonl").read_bytes())


def read_items(name: str, content: bytes) -> tuple[TaskItem, ...]:
    """Items of a JSONL file. Raises InputError naming the line that is malformed."""
    try:
        lines = content.decode("utf-8-sig").split("\n")  # not splitlines: a JSON text may hold other line ends
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8.", "Save it as UTF-8.") from error
    items = tuple(_item(name, number, line) for number, line in enumerate(lines, 1) if line.strip())
    if not items:
        raise InputError(f"{name} has no items.", _FORM)
    return items


async def answers(
    endpoint: Endpoint, items: Sequence[TaskItem], on_item: OnItem = lambda _: None
) -> tuple[int, ...]:
    """Which choice the server finds likeliest, for each item. Raises Unscorable when it cannot say."""
    dialect = replace(await dialect_of(endpoint), top_k=1)
    taken: list[int] = []
    for item in items:
        scores = [await score(endpoint, dialect, f"{item.context} {choice}") for choice in item.choices]
        likelihoods = [_likelihood(each, len(item.context)) for each in scores]
        taken.append(likelihoods.index(max(likelihoods)))
        on_item(len(taken))
    return tuple(taken)


def compare(
    name: str, items: Sequence[TaskItem], reference: tuple[str, Sequence[int]], candidate: tuple[str, Sequence[int]]
) -> TaskCheck:
    """Pair the answers of both sides, each given with its title."""
    answered = tuple(
        AnsweredItem(item=item, reference=ours, candidate=theirs)
        for item, ours, theirs in zip(items, reference[1], candidate[1], strict=True)
    )
    before = [float(each.reference == each.item.answer) for each in answered]
    after = [float(each.candidate == each.item.answer) for each in answered]
    lost, won = (sum(each.flip == way for each in answered) for way in ("lost", "won"))
    return TaskCheck(
        name=name,
        reference=reference[0],
        candidate=candidate[0],
        items=answered,
        chance=sum(1 / len(item.choices) for item in items) / len(items),
        reference_accuracy=sum(before) / len(before),
        candidate_accuracy=sum(after) / len(after),
        difference=mean_difference(before, after),
        lost=lost,
        won=won,
        p=mcnemar_p(lost, won),
    )


def _item(name: str, number: int, line: str) -> TaskItem:
    try:
        row = json.loads(line)
        item = TaskItem.model_validate(_fields(row))
    except json.JSONDecodeError as error:
        raise InputError(f"{name}, line {number}, is not JSON: {error.msg}.", _FORM) from error
    except ValidationError as error:
        raise InputError(f"{name}, line {number}: {validation_message(error)}.", _FORM) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{name}, line {number}, cannot be read: {error}.", _FORM) from error
    if item.answer >= len(item.choices):
        raise InputError(f"{name}, line {number}: there is no choice {item.answer}; they count from 0.", _FORM)
    return item


def _fields(row: Any) -> Any:
    """A row's own names as a TaskItem's: a question becomes a context, an answer's text its index."""
    if not isinstance(row, dict):
        return row
    fields = {key: row[key] for key in ("context", "choices", "answer") if key in row}
    if "question" in row:
        fields.setdefault("context", f"Question: {row['question']}\nAnswer:")
    choices, answer = fields.get("choices"), fields.get("answer")
    if isinstance(choices, list) and isinstance(answer, str) and answer in choices:
        fields["answer"] = choices.index(answer)
    return fields


def _likelihood(scores: PromptScores, begin: int) -> float:
    """Summed log-probability of the tokens that end after ``begin``, a place in the text."""
    if scores.offsets is None:
        raise Unscorable(
            "The server does not say where a token stands in its text.", "Our worker and vLLM do (text_offset)."
        )
    ends = [*scores.offsets[1:], begin + 1]
    own = [value for value, end in zip(scores.logprobs, ends, strict=True) if end > begin and value is not None]
    return sum(own)
