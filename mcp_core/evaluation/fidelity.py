"""Judging a Recipe: its model and its reference, loaded beside each other or in turns, scored on the same tokens.

Where both fit, nothing is stored: each chunk of logits is compared and dropped. Where they do not, the reference
comes first and is released before the candidate; between them the reference's logits, in its own dtype, wait in
host memory for as many passages as ``_HOST_BYTES`` hold, and then the next passages take their turn. This file does
not know what is averaged (``fidelity_metrics.py``) or where results are kept (``fidelity_job.py``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from mcp_core import hardware
from mcp_core.errors import Cancelled, OutOfMemory
from mcp_core.evaluation.fidelity_map import token_map
from mcp_core.evaluation.fidelity_memory import memory_watched, release, reuse_freed_blocks
from mcp_core.evaluation.fidelity_metrics import figures, over_floor, strata_of, stratum
from mcp_core.evaluation.fidelity_passages import fresh_cache, make_passages, require_same_tokens
from mcp_core.evaluation.fidelity_plan import Plan
from mcp_core.evaluation.fidelity_scoring import (
    Feed,
    PassageScores,
    decode_feeds,
    prefill_feeds,
    read,
    score,
    windows,
)
from mcp_core.evaluation.fidelity_text import Passage
from mcp_core.generation import PREFILL_CHUNK_TOKENS
from mcp_core.models import footprint, loader
from mcp_core.models.architecture import DTYPE_BYTES, ResolvedModel
from mcp_core.models.loaded import LoadedModel, Report
from mcp_core.recipe import Recipe
from mcp_core.results import Fidelity, Mean
from mcp_core.serving.text import TokenTexts
from mcp_core.token_map import TokenMap

__all__ = ["Judged", "judge"]

# Logits that wait on the host while the models take turns: at most these bytes, and this share of what is free.
_HOST_BYTES = 4 * 2**30
_HOST_SHARE = 0.25
# The noise floor's other batch composition: the engine's chunk in this many pieces.
_FLOOR_PIECES = 4
# Between two reports of progress; s.
_SAY_S = 0.5
# Of free memory, what both models may take together by the footprint's estimate.
_SHARE_FOR_BOTH = 0.9


@dataclass(frozen=True, slots=True)
class Judged:
    """The answer, the scored text, and the noise floor, which other candidates share."""

    fidelity: Fidelity
    token_map: TokenMap
    floor: Mean


def judge(
    plan: Plan,
    report: Report,
    stopped: threading.Event,
    *,
    floor: Mean | None = None,
    keep_floor: Callable[[Mean], None] = lambda _: None,
    hub_token: str | None = None,
) -> Judged:
    """Measure what ``plan`` asks; blocks for minutes. ``floor`` is known from an earlier time, else it is measured.

    ``keep_floor`` hears of a fresh one as soon as there is one. Raises Cancelled soon after ``stopped`` is set,
    OutOfMemory, ContextTooLong, InputError for too little text, and what loading raises.
    """
    torch.set_num_threads(plan.recipe.threads or 1)
    return _Judge(plan, report, stopped, floor, keep_floor, hub_token).run()


@dataclass(slots=True)
class _Work:
    """How far it is, and whether to go on."""

    report: Report
    stopped: threading.Event
    total: int = 0
    done: int = 0
    message: str = "Scoring."
    said_s: float = 0.0

    def fed(self, tokens: int) -> None:
        """So many more tokens went through a model. Raises Cancelled."""
        self.done += tokens
        self.check()
        if time.monotonic() - self.said_s > _SAY_S:
            self.said_s = time.monotonic()
            self.report("score", min(1.0, self.done / max(1, self.total)), self.message)

    def check(self) -> None:
        """Raises Cancelled."""
        if self.stopped.is_set():
            raise Cancelled("The measurement was stopped.", "Nothing of it was kept but the noise floor, if known.")


@dataclass(slots=True)
class _Findings:
    """What has come of the passages so far: candidate, other batch composition, and the extra row."""

    candidate: list[PassageScores] = field(default_factory=list)
    floor: list[PassageScores] = field(default_factory=list)
    chunked: list[PassageScores] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """The reference's logits of one passage, waiting on the host; ``chunked`` those of the extra row."""

    logits: list[torch.Tensor]
    chunked: list[torch.Tensor] = field(default_factory=list)


class _Judge:
    """One measurement."""

    def __init__(
        self,
        plan: Plan,
        report: Report,
        stopped: threading.Event,
        floor: Mean | None,
        keep_floor: Callable[[Mean], None],
        hub_token: str | None,
    ) -> None:
        self._plan = plan
        self._work = _Work(report, stopped)
        self._floor = floor
        self._keep_floor = keep_floor
        self._hub_token = hub_token
        self._chunk = PREFILL_CHUNK_TOKENS[torch.device(plan.recipe.device).type]
        self._notes: list[str] = []
        self._found = _Findings()
        self._kept: list[_Kept] | None = None
        self._passages: tuple[Passage, ...] = ()
        self._text_of: Callable[[int], str] = str
        self._tokenizer: Any = None

    def run(self) -> Judged:
        for turn in self._first_load():
            self._take_turn(turn)
        self._settle_floor()
        return self._judged()

    def _first_load(self) -> tuple[tuple[Passage, ...], ...]:
        """Turns to take, none where both models fit and everything is scored. The first turn's logits are kept."""
        beside = self._both_fit()
        with self._in_memory(self._plan.reference, "the reference") as reference:
            self._passages, notes = make_passages(self._plan, reference, self._work.report, self._work.check)
            self._notes += notes
            self._tokenizer = reference.tokenizer
            self._text_of = TokenTexts(reference.tokenizer).text
            self._count_work()
            if beside and self._beside(reference):
                return ()
            turns = tuple(self._turns())
            self._kept = [self._kept_logits(passage, reference) for passage in turns[0]]
            return turns

    # How it is scored

    def _beside(self, reference: LoadedModel) -> bool:
        """Score with both in memory; False where it ran out, and nothing has been found."""
        try:
            with self._in_memory(self._plan.candidate, "the candidate") as candidate:
                require_same_tokens(self._plan, reference.tokenizer, candidate.tokenizer)
                for passage in self._passages:
                    self._score_beside(passage, reference, candidate)
        except OutOfMemory:
            self._found = _Findings()
            self._work.done = 0
            return False
        return True

    def _score_beside(self, passage: Passage, reference: LoadedModel, candidate: LoadedModel) -> None:
        others = [self._read(candidate, self._plan.candidate, passage)]
        if self._floor is None:
            others.append(self._read_otherwise(reference, passage))
        scored, *floor = score(passage, self._read(reference, self._plan.reference, passage), others)
        self._found.floor += floor
        self._add(scored)
        if self._plan.path == "decode":
            expected = self._read(reference, self._plan.reference, passage, prefill_feeds)
            chunked = self._read(candidate, self._plan.candidate, passage, prefill_feeds)
            self._found.chunked += score(passage, expected, [chunked])

    def _take_turn(self, turn: Sequence[Passage]) -> None:
        """Its own frame: what waited for one turn is gone before the next."""
        kept = self._reference_turn(turn) if self._kept is None else self._kept
        self._kept = None
        self._candidate_turn(turn, kept)

    def _reference_turn(self, turn: Sequence[Passage]) -> list[_Kept]:
        with self._in_memory(self._plan.reference, "the reference") as reference:
            return [self._kept_logits(passage, reference) for passage in turn]

    def _candidate_turn(self, turn: Sequence[Passage], kept: Sequence[_Kept]) -> None:
        with self._in_memory(self._plan.candidate, "the candidate") as candidate:
            require_same_tokens(self._plan, self._tokenizer, candidate.tokenizer)
            for passage, each in zip(turn, kept, strict=True):
                self._add(*score(passage, each.logits, [self._read(candidate, self._plan.candidate, passage)]))
                if each.chunked:
                    chunks = self._read(candidate, self._plan.candidate, passage, prefill_feeds)
                    self._found.chunked += score(passage, each.chunked, [chunks])

    def _kept_logits(self, passage: Passage, reference: LoadedModel) -> _Kept:
        """What has to wait of the reference; its other batch composition is scored at once."""
        logits = [each.cpu() for each in self._read(reference, self._plan.reference, passage)]
        if self._floor is None:
            self._found.floor += score(passage, logits, [self._read_otherwise(reference, passage)])
        if self._plan.path == "prefill":
            return _Kept(logits)
        chunked = self._read(reference, self._plan.reference, passage, prefill_feeds)
        return _Kept(logits, [each.cpu() for each in chunked])

    def _turns(self) -> Iterator[tuple[Passage, ...]]:
        """The passages in order, each turn's logits within the host's share, at least one passage a turn."""
        copies = 2 if self._plan.path == "decode" else 1
        row_bytes = copies * self._plan.resolved.architecture.vocab * DTYPE_BYTES[self._plan.reference.dtype]
        host = hardware.detect().device("cpu")
        room = min(_HOST_BYTES, int(host.memory_free_bytes * _HOST_SHARE)) if host else _HOST_BYTES
        turn: list[Passage] = []
        for passage in self._passages:
            if turn and row_bytes * (sum(each.scored for each in turn) + passage.scored) > room:
                yield tuple(turn)
                turn = []
            turn.append(passage)
        yield tuple(turn)

    def _read(
        self,
        loaded: LoadedModel,
        recipe: Recipe,
        passage: Passage,
        feeds: Callable[[Passage, int], Sequence[Feed]] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Windows of logits over this passage on the plan's path, with the KV kind of the Recipe."""
        feeds = feeds or (decode_feeds if self._plan.path == "decode" else prefill_feeds)
        cache = fresh_cache(loaded, recipe, self._passages)
        return windows(read(loaded.model, passage, feeds(passage, self._chunk), cache, self._work.fed))

    def _read_otherwise(self, reference: LoadedModel, passage: Passage) -> Iterator[torch.Tensor]:
        """The reference in another batch composition: smaller chunks, or all at once what is decoded singly."""
        cache = fresh_cache(reference, self._plan.reference, self._passages)
        pieces = min(self._chunk // _FLOOR_PIECES, max(1, len(passage.ids) // 2))  # a short passage, too, is cut
        chunk = self._chunk if self._plan.path == "decode" else pieces
        return windows(read(reference.model, passage, prefill_feeds(passage, chunk), cache, self._work.fed))

    # What comes of it

    def _add(self, scored: PassageScores) -> None:
        self._found.candidate.append(scored)
        done = [each.scores for each in self._found.candidate]
        self._work.message = (
            f"{len(done)} of {len(self._passages)} documents, KL {figures(done).kl.mean:.3g} nats so far"
        )

    def _settle_floor(self) -> None:
        if self._floor is None:
            kl = figures([each.scores for each in self._found.floor]).kl
            self._floor = Mean(mean=kl.mean, se=kl.mean_se)
            self._keep_floor(self._floor)

    def _judged(self) -> Judged:
        plan, floor = self._plan, self._floor
        assert floor is not None, "settled"
        documents = [each.scores for each in self._found.candidate]
        total, strata = figures(documents), strata_of(documents)
        if self._found.chunked:
            name = f"served in chunks of {self._chunk} tokens"
            strata = (*strata, stratum(name, [each.scores for each in self._found.chunked]))
        fidelity = Fidelity(
            status="measured",
            key=plan.key,
            numerics_key=plan.recipe.numerics_key,
            reference=plan.reference_title,
            path=plan.path,
            engine=plan.recipe.engine,
            text_sha256=plan.text.sha256,
            text_name=plan.text.name,
            documents=total.documents,
            tokens=total.tokens,
            perplexity=total.perplexity,
            reference_perplexity=total.reference_perplexity,
            kl=total.kl,
            top1=total.top1,
            rms_dp=total.rms_dp,
            noise_floor=floor,
            kl_over_floor=over_floor(total.kl.mean, floor.mean),
            strata=tuple(sorted(strata, key=lambda row: row.kl.mean if row.kl else 0.0, reverse=True)),
            notes=(*plan.notes(total.documents), *self._notes),
        )
        return Judged(fidelity, token_map(self._found.candidate, self._text_of), floor)

    # Memory

    def _both_fit(self) -> bool:
        """Whether reference and candidate fit beside each other into what is free now, by the footprint."""
        machine = hardware.detect()
        device = machine.device(self._plan.recipe.device)
        assert device is not None, "the Recipe was found runnable"
        reference, candidate = (
            footprint.estimate(recipe, self._model_of(recipe), machine)
            for recipe in (self._plan.reference, self._plan.candidate)
        )
        needed = reference.peak_bytes + max(candidate.peak_bytes, candidate.load_peak_bytes)
        logits = 4 * self._chunk * self._plan.resolved.architecture.vocab * 4
        return needed + logits <= _SHARE_FOR_BOTH * device.memory_free_bytes

    @contextmanager
    def _in_memory(self, recipe: Recipe, role: str) -> Iterator[LoadedModel]:
        """The model of this Recipe while the block runs. Raises OutOfMemory, saying what was being done.

        Its memory is free once nobody holds it any more: what an earlier block left is released at the beginning.
        """
        self._work.check()
        release()
        with memory_watched(f"loading {role}" if recipe.quantization.scheme == "none" else f"quantizing {role}"):
            loaded = loader.load(self._model_of(recipe), recipe, self._work.report, self._hub_token)
        with memory_watched(f"scoring with {role}"):
            reuse_freed_blocks()
            yield loaded

    def _model_of(self, recipe: Recipe) -> ResolvedModel:
        return self._plan.reference_model if recipe is self._plan.reference else self._plan.resolved

    def _count_work(self) -> None:
        """Tokens that will go through a model."""
        tokens = sum(len(each.ids) for each in self._passages)
        reads = 2 + (self._floor is None) + (2 if self._plan.path == "decode" else 0)
        self._work.total = tokens * reads
