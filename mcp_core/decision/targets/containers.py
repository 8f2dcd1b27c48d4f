"""docker-compose and Kubernetes as targets: the engines' own images with the same flags.

MCP's worker has no image: it listens on its own machine only, by design. This file does not know any engine's flag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mcp_core.decision.bundle import Bundle
from mcp_core.decision.shipment import Shipment
from mcp_core.decision.targets import foreign, llama_cpp
from mcp_core.engines import FOREIGN
from mcp_core.errors import RecipeError

__all__ = ["IMAGES", "compose", "kubernetes"]

# Of the releases whose flags are written.
IMAGES = {
    "vllm": "vllm/vllm-openai:v0.23.0",
    "sglang": "lmsysorg/sglang:v0.5.23",
    "llama.cpp": "ghcr.io/ggml-org/llama.cpp:server",
}
_MODELS = "/models"
_CACHE = "/root/.cache/huggingface"
_MODEL_IN_CLAIM = f"{_MODELS}/{llama_cpp.MODEL_FILE}"
# What a loading model may take before a probe gives up: 30 minutes.
_STARTUP_TRIES = 180
_CLAIM_FACTOR, _LEAST_CLAIM_GIB = 1.3, 10


class _Plain(yaml.SafeDumper):
    """Writes a value that stands twice two times, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class _Container:
    """One container, whatever starts it. ``model``: what of the host is mounted at /models, empty: a download."""

    engine: str
    command: tuple[str, ...]
    port: int
    gpu: bool
    environment: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, Path] = field(default_factory=dict)
    not_carried: tuple[str, ...] = ()


def compose(shipment: Shipment, engine: str | None = None) -> Bundle:
    """A docker-compose.yaml. ``engine`` is the Recipe's own unless given. Raises RecipeError, InputError."""
    container = _container(shipment, engine)
    service: dict[str, Any] = {
        "image": IMAGES[container.engine],
        "command": [_literal(word) for word in container.command],
        "ports": [f"127.0.0.1:{container.port}:{container.port}"],
        "environment": dict(container.environment),
        "volumes": [_mounted(container.model) if container.model else f"huggingface:{_CACHE}"],
        "restart": "unless-stopped",
    }
    cached: dict[str, Any] = {} if container.model else {"volumes": {"huggingface": {}}}
    if container.gpu:
        device = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        service |= {"ipc": "host", "deploy": {"resources": {"reservations": {"devices": [device]}}}}
    text = _yaml({"services": {"llm": service}, **cached}, shipment)
    return _bundle("docker-compose", container, {"docker-compose.yaml": text}, "docker compose up")


def _mounted(model: str) -> dict[str, Any]:
    """In the long form: the short one is taken apart at colons."""
    return {"type": "bind", "source": _literal(model), "target": _MODELS, "read_only": True}


def _literal(text: str) -> str:
    """docker-compose puts variables of the caller's environment where a dollar stands alone."""
    return text.replace("$", "$$")


def kubernetes(shipment: Shipment, engine: str | None = None) -> Bundle:
    """Deployment, Service and volume claim. As ``compose``."""
    container = _container(shipment, engine)
    name = f"llm-{re.sub('[^a-z0-9]+', '-', container.engine.lower())}"
    documents = [_claim(name, shipment), _deployment(name, container), _service(name, container)]
    text = "---\n".join(_yaml(each, shipment) for each in documents)
    files = {"kubernetes.yaml": text}
    return _bundle(
        "kubernetes", container, files, "kubectl apply -f kubernetes.yaml", _claim_steps(name, container)
    )


def _container(shipment: Shipment, engine: str | None) -> _Container:
    chosen = engine or shipment.recipe.engine
    if chosen not in IMAGES:
        raise RecipeError(
            f"There is no container image for engine {chosen}: MCP's worker listens on its own machine only.",
            f"Choose --engine, one of: {', '.join(IMAGES)}; or export the worker.",
        )
    if chosen == "llama.cpp":
        return _llama_cpp(shipment)
    served = foreign.serve(shipment, chosen)
    if served.recipe.draft is not None and served.recipe.draft.source != "hub":
        raise RecipeError(
            f"The draft model {served.recipe.draft.id} lies on this machine, where a container does not see it.",
            f"Choose a draft from the Hub, or export {chosen} as a script.",
        )
    files, copied = foreign.model_folder(served.recipe.model), served.recipe.model.source
    place = f"{_MODELS}/model" if copied == "shape" else _MODELS
    model = served.model if copied == "hub" else place
    at = served.arguments.index(served.model)
    arguments = (*served.arguments[:at], model, *served.arguments[at + 1 :])
    entry = 3 if chosen == "vllm" else 0
    command = ("python3", *arguments) if chosen == "sglang" else arguments[entry:]
    return _Container(
        engine=chosen,
        command=_listening(command),
        port=foreign.PORTS[chosen],
        gpu=True,
        environment=_environment(served.environment, hub=copied == "hub"),
        model="" if copied == "hub" else ("./" if files else served.model),
        files=files,
        not_carried=served.not_carried,
    )


def _llama_cpp(shipment: Shipment) -> _Container:
    found = llama_cpp.bundle(shipment)
    flags = llama_cpp.flags(llama_cpp.sizes_of(shipment), host="0.0.0.0")  # noqa: S104 - inside its container
    return _Container(
        engine="llama.cpp",
        command=("--model", _MODEL_IN_CLAIM, *flags),
        port=llama_cpp.PORT,
        gpu=False,
        model="./",
        copies=found.copies,
        not_carried=found.not_carried,
    )


def _listening(command: tuple[str, ...]) -> tuple[str, ...]:
    """In a container every interface is its own."""
    return tuple("0.0.0.0" if word == "127.0.0.1" else word for word in command)  # noqa: S104


def _environment(environment: Mapping[str, str], *, hub: bool) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if not name.startswith("CUDA_")}
    return kept | ({"HF_TOKEN": "${HF_TOKEN:-}"} if hub else {})


def _claim(name: str, shipment: Shipment) -> dict[str, Any]:
    memory = shipment.run.memory if shipment.run else None
    weights = (memory.weights_bytes if memory else None) or 0
    size = max(_LEAST_CLAIM_GIB, round(weights * _CLAIM_FACTOR / 1024**3))
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{name}-models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{size}Gi"}}},
    }


def _deployment(name: str, container: _Container) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10}
    entry = "command" if container.engine == "sglang" else "args"
    spec: dict[str, Any] = {
        "name": "llm",
        "image": IMAGES[container.engine],
        entry: list(container.command),
        "ports": [{"name": "http", "containerPort": container.port}],
        "env": [_variable(each, value, name) for each, value in container.environment.items()],
        "startupProbe": probe | {"failureThreshold": _STARTUP_TRIES},
        "readinessProbe": probe,
        "livenessProbe": probe | {"failureThreshold": 6},
        "volumeMounts": [{"name": "models", "mountPath": _MODELS if container.model else _CACHE}],
    }
    volumes: list[dict[str, Any]] = [{"name": "models", "persistentVolumeClaim": {"claimName": f"{name}-models"}}]
    if container.gpu:
        spec["resources"] = {"limits": {"nvidia.com/gpu": 1}}
        spec["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # two would need the device at once
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                # Kubernetes' own variables of services are called as vLLM's: VLLM_PORT.
                "spec": {"enableServiceLinks": False, "containers": [spec], "volumes": volumes},
            },
        },
    }


def _variable(name: str, value: str, of: str) -> dict[str, Any]:
    if name != "HF_TOKEN":
        return {"name": name, "value": value}
    secret = {"name": f"{of}-secrets", "key": "hf-token", "optional": True}
    return {"name": name, "valueFrom": {"secretKeyRef": secret}}


def _service(name: str, container: _Container) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": "http", "port": container.port, "targetPort": "http"}],
        },
    }


def _claim_steps(name: str, container: _Container) -> tuple[str, ...]:
    if container.model:
        return (f"copy the model into the volume of claim {name}-models (it is read at {_MODELS})",)
    return (f"for a gated model: kubectl create secret generic {name}-secrets --from-literal=hf-token=...",)


def _bundle(
    target: str, container: _Container, files: Mapping[str, str], run: str, steps: tuple[str, ...] = ()
) -> Bundle:
    title = {"docker-compose": "docker-compose", "kubernetes": "Kubernetes"}[target]
    engine = FOREIGN[container.engine].title if container.engine in FOREIGN else container.engine
    return Bundle(
        target=target,
        title=f"{title} with {engine}",
        engine=container.engine,
        files={**files, **container.files},
        run=run,
        copies=container.copies,
        not_carried=(
            *container.not_carried,
            f"image: {IMAGES[container.engine]} may hold another release than the one that was measured.",
        ),
        steps=steps,
    )


def _yaml(document: Any, shipment: Shipment) -> str:
    text: str = yaml.dump(document, Dumper=_Plain, sort_keys=False, default_flow_style=False, width=110)
    return f"# From Run {shipment.run_id}; README.md says what speaks for it.\n{text}"
