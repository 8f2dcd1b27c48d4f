"""TokenMap: scored texts token by token: how far apart two models' next-token distributions are, and their guesses.

Frozen values. This file does not know how they are computed (``evaluation/fidelity.py``), kept
(``decision/store.py``) or coloured.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["TOP", "Guess", "MappedDocument", "MappedToken", "TokenMap"]

# Likeliest next tokens kept of each model at each scored position.
TOP = 5

# A token's text and its probability, 0..1.
Guess = tuple[str, float]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class MappedToken(_Value):
    """One token of a text. ``kl`` is None where nothing was scored: the first token, and what is only context."""

    id: int
    text: str = Field(description="What it reads as; a part of a character reads as bytes:\\xf0\\x9f.")
    kl: float | None = Field(
        default=None, description="KL(P_reference || Q) of the prediction of this token, nats."
    )
    reference_top: tuple[Guess, ...] = Field(default=(), description="The reference's likeliest, best first.")
    candidate_top: tuple[Guess, ...] = Field(default=(), description="The candidate's likeliest, best first.")
    true_p_reference: float | None = Field(default=None, description="Probability of this token by the reference.")
    true_p_candidate: float | None = Field(default=None, description="Probability of this token by the candidate.")


class MappedDocument(_Value):
    """One text. A reply's scored tokens are what the reference itself says, greedily."""

    name: str
    stratum: str
    tokens: tuple[MappedToken, ...]
    is_reply: bool = Field(default=False, description="The scored tokens are the reference's own greedy reply.")

    @property
    def diverges_at(self) -> int | None:
        """Index of the first token at which a greedy reply of the candidate would differ; None if it never does.

        Up to there both have the same words before them, so the candidate's likeliest token is what it would say.
        """
        if not self.is_reply:
            return None
        scored = ((index, token) for index, token in enumerate(self.tokens) if token.candidate_top)
        return next((index for index, token in scored if token.candidate_top[0][0] != token.text), None)


class TokenMap(_Value):
    """Every scored text of one Fidelity, in the order in which it was scored."""

    documents: tuple[MappedDocument, ...] = ()
