"""Pages drawn by Streamlit's AppTest over a FakeWorkbench."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # as `streamlit run app.py` does for the folder of app.py
    sys.path.insert(0, str(ROOT))


def _load_fakes() -> ModuleType:
    """fake_workbench.py under its own name, so that test files can say ``import fake_workbench``."""
    spec = importlib.util.spec_from_file_location("fake_workbench", Path(__file__).with_name("fake_workbench.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_workbench"] = module
    spec.loader.exec_module(module)
    return module


fakes = _load_fakes()


@pytest.fixture
def wb(monkeypatch: pytest.MonkeyPatch) -> object:
    """An empty FakeWorkbench in the place of the real one."""
    from pages._ui import workbench

    fake = fakes.FakeWorkbench()
    monkeypatch.setattr(workbench, "get_workbench", lambda: fake)
    return fake


@pytest.fixture
def page(wb: object) -> Callable[[str], AppTest]:
    """``page("home")`` is that page alone, not yet run."""
    return lambda name: AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=20)


@pytest.fixture
def app(wb: object, tmp_path: Path) -> AppTest:
    """The whole app with its frame, not yet run. ``switch_page(frame.path_of(name))`` goes to a page.

    Started from an empty folder: beside a pages/ folder, every second run of AppTest skips app.py and runs the
    page alone.
    """
    script = tmp_path / "framed_app.py"
    script.write_text(f"import runpy\nrunpy.run_path({str(ROOT / 'app.py')!r})\n")
    return AppTest.from_file(str(script), default_timeout=20)
