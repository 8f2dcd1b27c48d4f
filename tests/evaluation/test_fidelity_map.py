"""Scored passages as people read them."""

from __future__ import annotations

import numpy as np

from mcp_core.documents import Document
from mcp_core.evaluation.fidelity_map import token_map
from mcp_core.evaluation.fidelity_metrics import DocumentScores
from mcp_core.evaluation.fidelity_scoring import PassageScores
from mcp_core.evaluation.fidelity_text import Passage


def test_context_has_text_alone_and_scored_tokens_have_both_guesses():
    nll, kl = np.log([2.0, 4.0]), np.array([0.123456, 0.0])
    scores = DocumentScores("prose", nll, nll, kl, np.array([True, False]))
    ids, p = np.array([[7, 8], [9, 8]]), np.array([[0.5, 0.25], [0.333333, 0.1]])
    passage = Passage(Document("one", text="x", stratum="prose"), (5, 6, 7, 8), 2)
    scored = PassageScores(passage, scores, ids, p, ids[:, ::-1], p)
    (document,) = token_map([scored], lambda token: f"<{token}>").documents
    assert [token.text for token in document.tokens] == ["<5>", "<6>", "<7>", "<8>"]
    assert [token.kl for token in document.tokens] == [None, None, 0.1235, 0.0]
    assert document.tokens[1].reference_top == ()
    assert document.tokens[2].reference_top == (("<7>", 0.5), ("<8>", 0.25))
    assert document.tokens[3].candidate_top == (("<8>", 0.3333), ("<9>", 0.1))
    assert document.tokens[3].true_p_reference == 0.25
