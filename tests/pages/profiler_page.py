"""The profiler's panels alone, as a page: what AppTest draws."""

from __future__ import annotations

from pages._ui import profiler_panel, workbench

profiler_panel.draw_profiler(workbench.current_worker(), run_id="run-1")
