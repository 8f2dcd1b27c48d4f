"""Rows of claim, bound and figure, as every benchmark of claims prints them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """Collects what does not hold."""

    failed: list[str] = field(default_factory=list)

    def row(self, claim: str, must: str, figure: str, *, holds: bool) -> None:
        """Print one claim."""
        print(f"{'ok  ' if holds else 'FAIL'}  {claim:62} must {must:12} {figure}", flush=True)
        if not holds:
            self.failed.append(claim)

    def end(self) -> int:
        """Print the verdict; the exit code."""
        print("all hold" if not self.failed else f"{len(self.failed)} do not hold")
        return int(bool(self.failed))
