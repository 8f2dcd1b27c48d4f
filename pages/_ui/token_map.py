"""The token map: a scored text coloured by how far apart both models are at each token; a click opens that token.

The component is HTML, CSS and JavaScript of our own, drawn without network; texts go in as data and are set as
text, never as HTML. This file does not know how a map was measured.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

import streamlit as st

from mcp_core.token_map import Guess, MappedDocument, MappedToken, TokenMap
from pages._ui import format as fmt
from pages._ui import frame

__all__ = ["level_of", "token_map", "worst_token"]

# Lower ends of the shades, nats. 0.01 is about what bf16 alone does; from 0.7 (ln 2) on one model finds a token at
# least twice as likely as the other does, on average.
LEVELS = (0.01, 0.1, 0.7, 2.0)
_WORDS = ("under 0.01", "0.01 to 0.1", "0.1 to 0.7", "0.7 to 2", "over 2")
# A longer text would be slow to draw, and nobody reads it token by token.
MOST_TOKENS = 1500
_PART = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")

_HTML = '<div class="map" role="listbox" tabindex="0" aria-label="Tokens, coloured by KL"></div>'
_CSS = """
.map { line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto;
  padding: .75rem; border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius);
  color: var(--st-text-color); font-family: var(--st-code-font); font-size: .9rem; }
.map:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 1px; }
.t { cursor: pointer; border-radius: 3px; padding: 2px 0; }
.context { opacity: .7; cursor: default; }
.l1 { background: rgb(217 99 30 / 12%); }
.l2 { background: rgb(217 99 30 / 26%); }
.l3 { background: rgb(217 99 30 / 42%); box-shadow: inset 0 -2px 0 rgb(217 99 30); }
.l4 { background: rgb(217 99 30 / 58%); box-shadow: inset 0 -4px 0 rgb(217 99 30); }
.t:hover { outline: 1px solid var(--st-text-color); }
.chosen { outline: 2px solid var(--st-text-color); outline-offset: 1px; }
.fork::before { content: "≠"; font-weight: 700; margin-right: 2px; }
"""
_JS = """
export default function ({ data, parentElement, setStateValue }) {
  const map = parentElement.querySelector(".map");
  const scored = [...data.tokens.keys()].filter((index) => data.tokens[index].level !== null);
  let chosen = map.dataset.chosen === undefined ? data.chosen : Number(map.dataset.chosen);
  const spans = data.tokens.map((token, index) => {
    const span = document.createElement("span");
    span.textContent = token.text;
    span.title = token.title;
    span.className = token.level === null ? "t context" : `t l${token.level}`;
    if (index === data.fork) span.classList.add("fork");
    if (token.level !== null) {
      span.id = `token-${index}`;
      span.setAttribute("role", "option");
      span.setAttribute("aria-label", `${token.text}: ${token.title}`);
      span.onclick = () => choose(index);
    }
    return span;
  });
  function mark(index) {
    spans.forEach((span, at) => {
      span.classList.toggle("chosen", at === index);
      if (span.id) span.setAttribute("aria-selected", String(at === index));
    });
    if (spans[index]) map.setAttribute("aria-activedescendant", spans[index].id);
    chosen = index;
  }
  function choose(index) { mark(index); map.dataset.chosen = index; setStateValue("token", index); }
  map.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !scored.length) return;
    event.preventDefault();
    const at = scored.indexOf(chosen) + step;
    choose(scored[Math.max(0, Math.min(scored.length - 1, at))]);
    spans[chosen].scrollIntoView({ block: "nearest" });
  };
  const top = map.scrollTop;
  map.replaceChildren(...spans);
  map.scrollTop = top;
  mark(chosen);
}
"""


def token_map(kept: TokenMap, key: str) -> None:
    """Choose a text, see it coloured, open a token. ``key`` tells apart the maps of different Fidelities."""
    st.markdown("##### Token map", anchors=False, help=_help())
    document = _chosen_document(kept, key)
    tokens = document.tokens[:MOST_TOKENS]
    chosen = _draw(document, tokens, f"{key}-{document.name}")
    _legend(document, len(tokens))
    if chosen is not None and chosen < len(tokens):
        _token(tokens[chosen], chosen)
    if document.is_reply:
        _fork(document)


def level_of(kl: float | None) -> int | None:
    """Which shade, 0 to 4; None where nothing was scored."""
    return None if kl is None else sum(kl >= least for least in LEVELS)


def worst_token(tokens: Sequence[MappedToken]) -> int | None:
    """Index of the token with the largest KL; None when none was scored."""
    scored = [(token.kl, -index) for index, token in enumerate(tokens) if token.kl is not None]
    return -max(scored)[1] if scored else None


def _chosen_document(kept: TokenMap, key: str) -> MappedDocument:
    """The one that differs most first: there is something to see."""
    worst_first = sorted(range(len(kept.documents)), key=lambda at: -_mean_kl(kept.documents[at]))
    at = st.selectbox(
        "Text",
        worst_first,
        format_func=lambda index: _document_words(kept.documents[index]),
        key=f"{key}-document",
        help="The text with the largest mean KL stands first.",
    )
    return kept.documents[at]


def _document_words(document: MappedDocument) -> str:
    kind = f"{document.stratum}, the reference's own reply" if document.is_reply else document.stratum
    return f"{document.name} · {kind} · mean KL {fmt.number(_mean_kl(document))} nats"


def _mean_kl(document: MappedDocument) -> float:
    scored = [token.kl for token in document.tokens if token.kl is not None]
    return sum(scored) / len(scored) if scored else 0.0


def _draw(document: MappedDocument, tokens: Sequence[MappedToken], key: str) -> int | None:
    """The component; the index of the chosen token, at first where a reply forks, else the worst one."""
    first = document.diverges_at if document.is_reply else None
    first = worst_token(tokens) if first is None else first
    # Registered at every run: a server that was started anew does not know it, and the same again is no change.
    component = st.components.v2.component("mcp_token_map", html=_HTML, css=_CSS, js=_JS)
    texts = _readable([token.text for token in tokens])
    data = {
        "tokens": [_as_data(*each) for each in zip(tokens, texts, strict=True)],
        "chosen": first,
        "fork": document.diverges_at,
    }
    answer = component(key=key, data=data, default={"token": first}, on_token_change=lambda: None)
    return None if answer.token is None else int(answer.token)


def _readable(texts: Sequence[str]) -> list[str]:
    """A letter that several tokens share stands in the last of them, so that the text reads as it was written."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(_bytes_of(text)) for text in texts]


def _bytes_of(text: str) -> bytes:
    """What a token stands for: a part of a letter comes as ``bytes:\\xc3``."""
    part = _PART.fullmatch(text)
    return bytes.fromhex(part[1].replace("\\x", "")) if part else text.encode()


def _as_data(token: MappedToken, text: str) -> dict[str, Any]:
    if token.kl is None:
        return {"text": text, "level": None, "title": "context, not scored"}
    return {"text": text, "level": level_of(token.kl), "title": f"KL {fmt.number(token.kl)} nats"}


def _legend(document: MappedDocument, shown: int) -> None:
    shades = "".join(
        f'<span style="background: rgb(217 99 30 / {share}%); border-bottom: {line}px solid rgb(217 99 30); '
        f'padding: 0 .5em">{words}</span>'
        for share, line, words in zip((0, 12, 26, 42, 58), (0, 0, 0, 2, 4), _WORDS, strict=True)
    )
    st.html(f'<div style="display:flex;flex-wrap:wrap;gap:.4em;font-size:.85rem">KL, nats: {shades}</div>')
    notes = ["Click a token, or use the arrow keys in the text. Faded tokens are context and are not scored."]
    if document.diverges_at is not None:
        notes.append("≠ marks the first word that a greedy reply of this Recipe would say differently.")
    if shown < len(document.tokens):
        notes.append(f"The first {shown:,} of {len(document.tokens):,} tokens are shown.")
    st.caption(" ".join(notes))


def _token(token: MappedToken, index: int) -> None:
    """Both models' five likeliest at one place."""
    with st.container(border=True):
        st.markdown(f"**Token {index}:** {frame.plain(_visible(token.text))}")
        if token.kl is None:
            st.caption("Context: it is read, not predicted.")
            return
        st.caption(
            f"KL {fmt.number(token.kl)} nats · probability of this token {_percent(token.true_p_reference)} by the "
            f"reference, {_percent(token.true_p_candidate)} by this Recipe"
        )
        st.table(
            _guesses(token),
            hide_index=True,
            border="horizontal",
            alt="The five likeliest next tokens of the reference and of this Recipe.",
        )


def _guesses(token: MappedToken) -> list[dict[str, str]]:
    count = max(len(token.reference_top), len(token.candidate_top))
    return [
        {
            "": str(rank + 1),
            "Reference": _guess(token.reference_top, rank),
            "This Recipe": _guess(token.candidate_top, rank),
        }
        for rank in range(count)
    ]


def _guess(top: Sequence[Guess], rank: int) -> str:
    if rank >= len(top):
        return fmt.NOT_MEASURED
    text, probability = top[rank]
    return f"{frame.plain(_visible(text))} · {_percent(probability)}"


def _fork(document: MappedDocument) -> None:
    """Where the two replies part."""
    at = document.diverges_at
    if at is None:
        st.caption("A greedy reply of this Recipe has the same words to its end.")
        return
    token = document.tokens[at]
    before = "".join(each.text for each in document.tokens[max(0, at - 12) : at]).strip()
    theirs = token.candidate_top[0][0]
    st.markdown(
        f"First word that differs, after {frame.plain('… ' + before)}: the reference says "
        f"**{frame.plain(_visible(token.text))}**, this Recipe **{frame.plain(_visible(theirs))}**."
    )


def _visible(text: str) -> str:
    """A token that can be seen: a space as ␣, a line end as ↵."""
    return text.replace("\n", "↵").replace(" ", "␣") or "(empty)"


def _percent(probability: float | None) -> str:
    return fmt.NOT_MEASURED if probability is None else f"{probability:.1%}"


def _help() -> str:
    return (
        "Each token of a scored text. The darker, the further apart the two models' next-token distributions are: "
        "KL(reference ‖ this Recipe), nats. 0 means equal."
    )
