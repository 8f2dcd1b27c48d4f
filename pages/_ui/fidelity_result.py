"""One Fidelity: the answer in one sentence, its figures, the kinds of text worst first, what limits its worth.

This file does not know where it comes from.
"""

from __future__ import annotations

import csv
import io

import streamlit as st

from mcp_core.results import Fidelity, Mean, StoredFidelity, StratumFidelity
from pages._ui import format as fmt
from pages._ui import frame

__all__ = ["DEFINITIONS", "downloads", "fidelity_result", "headline", "mean_words"]

DEFINITIONS = {
    "kl": "KL(reference ‖ this Recipe): how far the next-token distribution is from the reference's, averaged over "
    "all scored tokens, nats. 0 is no change.",
    "top1": "Share of tokens at which both models find the same next token likeliest.",
    "perplexity": "exp(mean −ln p) of the true tokens: how surprised the model is by the text. Lower is better; "
    "the reference's own stands below.",
    "rms_dp": "Root mean square difference of the true token's probability.",
    "floor": "Mean KL of the reference against itself, computed with another batch composition or kernel. "
    "What lies below cannot be told from rounding.",
}
# Multiples of the noise floor up to which a change is rounding's, and from which nobody will overlook it.
_LIKE_NOISE = 2.0


def fidelity_result(stored: StoredFidelity) -> None:
    """Draw it; one that could not be measured says why."""
    fidelity, recipe = stored.fidelity, stored.recipe
    st.caption(
        f"{fmt.model_name(recipe)} · {fmt.recipe_line(recipe)} · {fidelity.engine} · {fmt.ago(stored.created)}"
    )
    if fidelity.status != "measured":
        st.info(frame.plain(f"{_STATUS[fidelity.status]} {fidelity.reason}"), icon=":material/info:")
        _details(fidelity)
        return
    st.markdown(f"#### {headline(fidelity)}", anchors=False)
    _figures(fidelity)
    _notes(fidelity)
    _strata(fidelity)
    _details(fidelity)


_STATUS = {"not-measurable": "It cannot be measured:", "lossless-by-test": "It loses nothing:"}


def headline(fidelity: Fidelity) -> str:
    """The answer in one sentence; the multiple of the noise floor first where there is one."""
    kl, top1 = fidelity.kl, fidelity.top1
    assert kl is not None, "measured"
    same = f"; top-1 agreement {top1.mean:.1%}" if top1 else ""
    if fidelity.kl_over_floor is None:
        return f"KL {fmt.number(kl.mean)} nats{same}"
    if fidelity.kl_over_floor <= _LIKE_NOISE:
        return f"No more than rounding does: {fmt.number(fidelity.kl_over_floor)}× the noise floor{same}"
    return f"{fmt.number(fidelity.kl_over_floor)}× the noise floor (KL {fmt.number(kl.mean)} nats){same}"


def downloads(stored: StoredFidelity) -> None:
    """The whole answer as JSON, its rows as CSV."""
    key = (stored.fidelity.key or "fidelity")[:12]
    with st.container(horizontal=True):
        st.download_button(
            "JSON",
            stored.model_dump_json(indent=2) + "\n",
            file_name=f"fidelity-{key}.json",
            mime="application/json",
            on_click="ignore",
            icon=":material/download:",
            key=f"json-{key}",
            help="Recipe, every figure, every kind of text.",
        )
        st.download_button(
            "CSV",
            as_csv(stored.fidelity),
            file_name=f"fidelity-{key}.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            key=f"csv-{key}",
            help="A row for all texts and one for each kind.",
        )


def as_csv(fidelity: Fidelity) -> str:
    """A row for all texts and one a kind of text; nothing where a figure was not measured."""
    out = io.StringIO()
    rows = [_csv_row("all", fidelity), *(_csv_row(row.name, row) for row in fidelity.strata)]
    writer = csv.DictWriter(out, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def mean_words(mean: Mean | None, *, percent: bool = False) -> str:
    """ "0.187 ± 0.01", "69.2% ± 0.5%"; one standard error."""
    if mean is None:
        return fmt.NOT_MEASURED
    if percent:
        return f"{mean.mean:.1%}" + ("" if mean.se is None else f" ± {mean.se:.1%}")
    return fmt.number(mean.mean) + ("" if mean.se is None else f" ± {fmt.one_digit(mean.se)}")


def _figures(fidelity: Fidelity) -> None:
    kl = fidelity.kl
    cards = (
        ("KL, nats", mean_words(Mean(mean=kl.mean, se=kl.mean_se) if kl else None), "kl"),
        ("Top-1 agreement", mean_words(fidelity.top1, percent=True), "top1"),
        ("Perplexity", mean_words(fidelity.perplexity), "perplexity"),
        ("Reference's", mean_words(fidelity.reference_perplexity), "perplexity"),
        ("RMS Δp", mean_words(fidelity.rms_dp, percent=True), "rms_dp"),
        ("Floor, nats", mean_words(fidelity.noise_floor), "floor"),
    )
    with st.container(horizontal=True):
        for label, words, name in cards:
            value, _, error = words.partition(" ± ")
            st.metric(
                label,
                value,
                delta=f"± {error}" if error else None,
                delta_color="off",
                delta_arrow="off",
                help=DEFINITIONS[name],
                border=True,
                width=150,  # two beside each other on a phone of 390
            )
    if kl is not None:
        p99 = "too few tokens" if kl.p99 is None else f"{fmt.number(kl.p99)} nats"
        st.caption(
            f"KL: median {fmt.number(kl.median)} nats, p99 {p99}, max {fmt.number(kl.max)} nats · "
            f"{fmt.count(fidelity.documents, 'document')}, {fmt.count(fidelity.tokens, 'token')} of "
            f"{frame.plain(fidelity.text_name)} · ± is one standard error, by bootstrap over documents"
        )


def _notes(fidelity: Fidelity) -> None:
    """What limits its worth, said before anybody reads the figures in detail."""
    if fidelity.notes:
        listed = "\n".join(f"- {frame.plain(fmt.sentence(note))}" for note in fidelity.notes)
        st.warning(f"**How far this goes**\n\n{listed}", icon=":material/warning:")


def _strata(fidelity: Fidelity) -> None:
    if len(fidelity.strata) < 2:
        return
    worst = fidelity.strata[0]
    st.markdown(f"##### Worst on {frame.plain(worst.name)}", anchors=False)
    st.table(
        [_stratum_row(row) for row in fidelity.strata],
        hide_index=True,
        border="horizontal",
        alt="Fidelity on each kind of text, the worst first.",
    )


def _stratum_row(row: StratumFidelity) -> dict[str, str]:
    return {
        "Kind of text": frame.plain(row.name),
        "KL, nats": mean_words(Mean(mean=row.kl.mean, se=row.kl.mean_se)) if row.kl else fmt.NOT_MEASURED,
        "Top-1 agreement": mean_words(row.top1, percent=True),
        "Perplexity": mean_words(row.perplexity),
        "Reference's": mean_words(row.reference_perplexity),
        "RMS Δp": mean_words(row.rms_dp, percent=True),
        "Documents": f"{row.documents:,}",
        "Tokens": f"{row.tokens:,}",
    }


_PATHS = {
    "prefill": "whole texts at once, as a prompt is read",
    "decode": "one token at a time, as a reply is written: this is where a KV cache kind shows",
    "endpoint": "by the prompt log-probabilities of the server that runs it",
}


def _details(fidelity: Fidelity) -> None:
    with st.expander("What was compared", icon=":material/info:"):
        st.markdown(f"- Reference: {frame.plain(fidelity.reference)}")
        st.markdown(f"- Scored {_PATHS[fidelity.path]}")
        if fidelity.truncation is not None:
            st.markdown(
                f"- The server names {fidelity.truncation.top_k} alternatives a token; "
                f"{fidelity.truncation.tail_mass:.2%} of the reference's probability lies outside and counts as one"
            )
        if fidelity.text_sha256 is not None:
            st.markdown(f"- Text: {frame.plain(fidelity.text_name)}, SHA-256 `{fidelity.text_sha256[:16]}…`")


def _csv_row(name: str, row: Fidelity | StratumFidelity) -> dict[str, object]:
    kl = row.kl
    figures = {
        "kl_mean_nats": kl and kl.mean,
        "kl_mean_se": kl and kl.mean_se,
        "kl_median": kl and kl.median,
        "kl_p99": kl and kl.p99,
        "kl_max": kl and kl.max,
    }
    means = {
        "top1": row.top1,
        "perplexity": row.perplexity,
        "reference_perplexity": row.reference_perplexity,
        "rms_dp": row.rms_dp,
    }
    for key, mean in means.items():
        figures |= {key: mean and mean.mean, f"{key}_se": mean and mean.se}
    return {"text": name, "documents": row.documents, "tokens": row.tokens, **figures}
