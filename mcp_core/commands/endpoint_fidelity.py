"""``mcp-core fidelity RECIPE --url U``: a running server that serves the Recipe's model, judged in a job's process.

This file does not know how a server is scored (``evaluation/endpoint_job.py``).
"""

from __future__ import annotations

import argparse

from mcp_core.commands.job_run import run_job
from mcp_core.errors import InputError
from mcp_core.evaluation.endpoint_recipe import require_url
from mcp_core.recipe import Recipe
from mcp_core.results import Fidelity

__all__ = ["add_urls", "measure_endpoint"]


def add_urls(parser: argparse.ArgumentParser) -> None:
    """--url and --reference-url."""
    parser.add_argument(
        "--url", help="judge this running OpenAI-compatible server, which serves the Recipe's model"
    )
    parser.add_argument(
        "--reference-url", metavar="URL", help="with --url: compare with this server instead of a worker"
    )


def measure_endpoint(
    recipe: Recipe, url: str, reference_url: str | None, text_sha256: str | None, *, progress_as_json: bool
) -> Fidelity:
    """Judge the server at ``url`` and store the answer. It takes no device for itself: speed is not judged.

    Raises InputError for what is no URL, Cancelled, and the job's own error.
    """
    for each in filter(None, (url, reference_url)):
        require_url(each)
    if recipe.model.source == "endpoint":
        raise InputError("The Recipe names no model, only a server.", "Give the Recipe of what the server serves.")
    answer = run_job(
        "endpoint-fidelity",
        f"mcp-core fidelity {url}",
        {
            "recipe": recipe.model_dump(mode="json"),
            "url": url,
            "reference_url": reference_url,
            "text_sha256": text_sha256,
        },
        device=None,
        progress_as_json=progress_as_json,
    )
    return Fidelity.model_validate(answer["fidelity"])
