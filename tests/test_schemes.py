from __future__ import annotations

from typing import get_args

import pytest

from mcp_core.hardware import Device, Hardware
from mcp_core.recipe import Quantization, Recipe, SchemeName
from mcp_core.schemes import SCHEMES, reason_to_keep_dense

APPLIED_HERE = [scheme for scheme in SCHEMES.values() if scheme.engine == "transformers"]


def machine(capability: tuple[int, int] | None = None, **changes: object) -> Hardware:
    """A laptop, or with a compute capability a host with one NVIDIA device."""
    gigabyte = 10**9
    memory = {"memory_total_bytes": 16 * gigabyte, "memory_free_bytes": 8 * gigabyte}
    devices = [Device(id="cpu", kind="cpu", name="Test CPU", **memory)]
    if capability:
        devices.append(Device(id="cuda:0", kind="cuda", name="Test GPU", compute_capability=capability, **memory))
    fields = {
        "host": "test",
        "os": "Linux",
        "python": "3.11",
        "cpu": "Test CPU",
        "cores": 4,
        "cpu_flags": (),
        "devices": tuple(devices),
        "torch_cuda": "13.0" if capability else None,
        "libraries": {"torch": "2.13", "bitsandbytes": "0.50", "torchao": "0.18"},
    }
    return Hardware(**fields | changes)


def conflicts(hardware: Hardware, **changes: object) -> dict[str, tuple[str, str]]:
    recipe = Recipe().replace({name.replace("__", "."): value for name, value in changes.items()})
    return {conflict.field: (conflict.reason, conflict.fix) for conflict in recipe.conflicts(hardware)}


def test_every_scheme_of_a_recipe_has_a_row() -> None:
    assert set(SCHEMES) == set(get_args(SchemeName))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_a_row_says_what_it_is_needs_and_becomes(scheme) -> None:
    assert scheme.about.endswith(".")
    assert scheme.needs.endswith(".")
    assert scheme.deployable_as
    applied = scheme in APPLIED_HERE and scheme.name != "none"
    assert [scheme.apply, scheme.convert].count(None) == (1 if applied else 2)
    assert scheme.saved_as or scheme.unsaved_because


@pytest.mark.parametrize("scheme", APPLIED_HERE, ids=lambda scheme: scheme.name)
def test_a_scheme_runs_where_its_row_says(scheme) -> None:
    changes = {"quantization__scheme": scheme.name, "dtype": scheme.dtypes[0]}
    hosts = {"cpu": machine(), "cuda": machine((9, 0))}
    for kind, host in hosts.items():
        found = conflicts(host, device="cuda:0" if kind == "cuda" else "cpu", **changes)
        assert ("quantization.scheme" in found) == (kind not in scheme.devices)


def test_a_kernel_that_is_missing_names_the_schemes_that_are_there() -> None:
    reason, fix = conflicts(machine(), quantization__scheme="torchao-fp8-dynamic")["quantization.scheme"]
    assert reason == "torchao-fp8-dynamic has no kernel for cpu."
    assert "torchao-int8-weight-only" in fix
    assert "bnb-nf4" not in fix  # another size


@pytest.mark.parametrize(
    ("scheme", "too_old", "new_enough"),
    [
        ("torchao-fp8-dynamic", (8, 6), (8, 9)),
        ("torchao-int4-weight-only", (7, 5), (8, 0)),
        ("bnb-int8", (7, 0), (7, 5)),
    ],
)
def test_an_old_device_is_told_its_capability(scheme, too_old, new_enough) -> None:
    asked = {"quantization__scheme": scheme, "device": "cuda:0", "dtype": "bf16"}
    reason, fix = conflicts(machine(too_old), **asked)["quantization.scheme"]
    assert f"Test GPU has {too_old[0]}.{too_old[1]}" in reason
    assert scheme not in fix
    assert conflicts(machine(new_enough), **asked) == {}


@pytest.mark.parametrize(
    ("scheme", "dtype", "fix"),
    [
        ("classic-dynamic", "bf16", "Set dtype to fp32."),
        ("torchao-int4-weight-only", "fp32", "Set dtype to bf16."),
    ],
)
def test_a_dtype_that_a_scheme_cannot_use_is_refused_with_the_one_it_can(scheme, dtype, fix) -> None:
    found = conflicts(machine(), quantization__scheme=scheme, dtype=dtype)
    assert found["quantization.scheme"][1] == fix


def test_group_sizes_are_those_of_the_devices_kernel() -> None:
    asked = {"quantization__scheme": "torchao-int4-weight-only", "dtype": "bf16", "quantization__group_size": 256}
    reason, fix = conflicts(machine(), device="cpu", **asked)["quantization.group_size"]
    assert "256" in reason
    assert fix == "It has 32, 64, 128."
    assert conflicts(machine((8, 0)), device="cuda:0", **asked) == {}


def test_a_library_that_is_missing_is_named() -> None:
    bare = machine(libraries={"torch": "2.13"})
    reason, fix = conflicts(bare, quantization__scheme="torchao-int8-dynamic")["quantization.scheme"]
    assert "torchao" in reason
    assert fix == "pip install torchao"


@pytest.mark.parametrize(
    ("options", "shape", "kind", "said"),
    [
        ({"scheme": "torchao-int4-weight-only", "group_size": 128}, (64, 576), "cpu", "576 inputs"),
        ({"scheme": "torchao-int4-weight-only"}, (64, 576), "cpu", ""),
        ({"scheme": "torchao-int4-weight-only"}, (60, 576), "cpu", "60 outputs"),
        ({"scheme": "torchao-int4-weight-only"}, (60, 576), "cuda", ""),
        ({"scheme": "bnb-nf4"}, (48, 64), "cpu", "48 outputs"),
        ({"scheme": "bnb-nf4"}, (48, 64), "cuda", ""),
        ({"scheme": "torchao-int8-dynamic"}, (60, 64), "cuda", "60 outputs"),
        ({"scheme": "torchao-int8-dynamic"}, (60, 64), "cpu", ""),
        ({"scheme": "torchao-fp8-dynamic"}, (64, 72), "cuda", "72 inputs"),
        ({"scheme": "bnb-int8"}, (7, 9), "cuda", ""),
    ],
)
def test_shapes_that_a_scheme_cannot_pack_have_a_reason(options, shape, kind, said) -> None:
    reason = reason_to_keep_dense(Quantization(**options), *shape, kind)
    assert said in reason
    assert bool(reason) == bool(said)
