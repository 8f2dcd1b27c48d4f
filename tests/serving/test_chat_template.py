from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import pytest

from mcp_core.errors import RequestRejected
from mcp_core.serving.chat_template import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]
CHATML = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def render(source: str | None, *chats: list[dict[str, str]], time_limit_s: float = 20) -> list[str]:
    async def story() -> list[str]:
        template = ChatTemplate(source, {"bos_token": "<s>"}, time_limit_s=time_limit_s)
        try:
            return [await template.render(chat) for chat in chats]
        finally:
            await template.close()

    return asyncio.run(story())


def test_messages_become_the_template_s_text_with_its_special_tokens_and_the_generation_prompt() -> None:
    system = [{"role": "system", "content": "Be €äß 'brief'."}, *USER]
    assert render(CHATML, system, USER) == [
        "<s><|system|>Be €äß 'brief'.\n<|user|>Hi\n<|assistant|>",
        "<s><|user|>Hi\n<|assistant|>",
    ]


def test_it_renders_what_transformers_renders() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{%- set ns = namespace(count=0) -%}\n"
        "{% for message in messages %}\n"
        "    {% if message.role == 'system' %}{% continue %}{% endif %}\n"
        "    {%- set ns.count = ns.count + 1 %}\n"
        "    {% generation %}{{ message.content | tojson }}{% endgeneration %}\n"
        "{{ message.content.strip() }}#{{ ns.count }} {{ 'tools' if tools else 'no tools' }}\n"
        "{% endfor %}{{ strftime_now('%Y') }}{{ bos_token }}"
    )
    chat = [{"role": "system", "content": "x"}, {"role": "user", "content": " <b>'é' & \"q\"</b>\n "}]
    expected, _ = render_jinja_template([chat], chat_template=source, add_generation_prompt=True, bos_token="<s>")
    assert render(source, chat) == expected


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}", "cannot be read"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[5].content.foo.bar }}", "refused"),
        ("{{ 'a' * 99999999999 }}", "MemoryError"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "__class__"),
    ],
)
def test_a_template_that_cannot_render_rejects_the_request_with_its_cause(source: str | None, cause: str) -> None:
    with pytest.raises(RequestRejected, match=cause) as caught:
        render(source, USER)
    assert caught.value.param == "messages"


def test_a_template_that_loops_is_killed_in_time_and_the_next_request_is_served() -> None:
    source = (
        "{% if messages[0].content == 'loop' %}"
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}ok"
    )

    async def story() -> None:
        template = ChatTemplate(source, {}, time_limit_s=0.5)
        try:
            assert await template.render(USER) == "ok"
            started = time.monotonic()
            with pytest.raises(RequestRejected, match=r"chat template did not finish in 0\.5 s"):
                await template.render([{"role": "user", "content": "loop"}])
            assert time.monotonic() - started < 3
            assert await template.render(USER) == "ok"
        finally:
            await template.close()

    asyncio.run(story())


def test_a_cancelled_request_does_not_leave_its_answer_to_the_next() -> None:
    async def story() -> None:
        template = ChatTemplate("{{ messages[0].content }}", {}, time_limit_s=20)
        try:
            await template.render(USER)
            first = asyncio.create_task(template.render([{"role": "user", "content": "first"}]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            first.cancel()
            assert await template.render([{"role": "user", "content": "second"}]) == "second"
        finally:
            await template.close()

    asyncio.run(story())


def test_the_helper_dies_with_its_parent() -> None:
    code = (
        "import asyncio, os, sys\n"
        "from mcp_core.serving.chat_template import ChatTemplate\n"
        "async def story():\n"
        "    template = ChatTemplate('x', {})\n"
        "    await template.render([])\n"
        "    print(template._process.pid, flush=True)\n"
        "    os._exit(0)\n"
        "asyncio.run(story())\n"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the helper outlived its parent")


def test_the_helper_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'tokenizers'}"
    code = f"import sys, mcp_core.serving.template_process; print({heavy} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert printed.strip() == "set()"
