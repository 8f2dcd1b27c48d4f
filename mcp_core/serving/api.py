"""The worker's HTTP application: OpenAI's routes, health and metrics; ``control.py`` adds its own.

This file does not know how requests are checked, generated or written; it puts the parts together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response

from mcp_core.monitoring.prometheus import CONTENT_TYPE
from mcp_core.serving.answer import ChatForm, CompletionForm
from mcp_core.serving.answer_response import AnswerResponse
from mcp_core.serving.http_errors import install_error_handlers
from mcp_core.serving.http_guard import HttpGuard
from mcp_core.serving.protocol import ChatRequest, CompletionRequest
from mcp_core.serving.service import Service
from mcp_core.serving.text import TokenTexts

__all__ = ["create_app"]


def create_app(service: Service, *routers: APIRouter, hosts: Iterable[str] = ()) -> FastAPI:
    """The application. ``hosts`` are Host names to answer to beside the loopback ones."""
    # No documentation pages: they would load scripts from elsewhere.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    for router in (_openai_routes(service), _health_routes(service), *routers):
        app.include_router(router)
    install_error_handlers(app)
    app.add_middleware(HttpGuard, hosts=tuple(hosts))
    return app


def _openai_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1")
    texts = TokenTexts(service.model.tokenizer)
    card = {
        "id": service.model_id,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "mcp",
        "max_model_len": service.model.max_context,
    }

    @router.post("/chat/completions")
    async def chat(body: ChatRequest) -> Response:
        exchange = await service.chat(body)
        form = ChatForm(exchange.id, service.model_id, texts, with_logprobs=body.logprobs)
        return AnswerResponse(
            exchange, form, stream=body.stream, include_usage=body.include_usage, per_prompt=body.n
        )

    @router.post("/completions")
    async def complete(body: CompletionRequest) -> Response:
        exchange = await service.complete(body)
        form = CompletionForm(
            exchange.id,
            service.model_id,
            texts,
            with_logprobs=body.logprobs is not None,
            as_ids=body.return_tokens_as_token_ids,
        )
        return AnswerResponse(
            exchange, form, stream=body.stream, include_usage=body.include_usage, per_prompt=body.n
        )

    @router.get("/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    @router.get("/models/{model_id:path}")
    async def model(model_id: str) -> Response:
        service.require_model(model_id)
        return JSONResponse(card)

    return router


def _health_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        status = "ready" if service.ready else "draining"
        return JSONResponse({"status": status}, 200 if service.ready else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    return router
