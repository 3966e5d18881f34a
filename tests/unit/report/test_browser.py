"""The page of a report in Chromium without a network. Without Chromium, these tests are skipped."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from loader.report.page import render_page
from tests.support.html_page import Element, read_page
from tests.unit.report.test_page import EMPTY, campaign, figure

TAKE_OVER = "<img src=x onerror=\"document.title = 'taken over'\"><script>document.title = 'taken over'</script>"

# Clicks twice on the heading of the opens and once on that of the names, and keeps the order of the names each time.
CLICKS = """
    const table = document.querySelector("table.sortable");
    for (const column of [5, 5, 0]) {
      table.querySelectorAll("thead button")[column].click();
      const order = document.createElement("p");
      order.className = "order";
      order.textContent = [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join(", ");
      document.body.append(order);
    }
"""


def open_in_browser(page: str, folder: Path) -> Element:
    """Return a page as Chromium has it after its scripts."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine, so the page was not opened in a browser")
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    options = ["--headless=new", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--user-data-dir={folder / 'profile'}", "--no-first-run"]
    # The sandbox of Chromium does not work for root.
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [chromium, *options, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return read_page(done.stdout)


def test_a_browser_runs_the_script_of_the_page_and_no_other(tmp_path: Path) -> None:
    """The headings of a sortable table become buttons, and a hostile name does nothing."""
    page = render_page(replace(EMPTY, campaigns=figure(campaign(7, TAKE_OVER, 1))))
    shown = open_in_browser(page, tmp_path)
    assert [button.text() for button in shown.section("campaigns").all("button")][:2] == ["Campaign", "Channel"]
    assert shown.section("campaigns").table()[0][0] == TAKE_OVER
    assert shown.all("title")[0].text() == "Iterable: messages from 1 Mar 2026 to 30 Mar 2026"


def test_a_browser_runs_no_script_injected_into_the_page(tmp_path: Path) -> None:
    """The policy is a second wall: it holds even where the escaping of a name would be forgotten."""
    shown = open_in_browser(render_page(EMPTY).replace("<footer>", f"<footer>{TAKE_OVER}"), tmp_path)
    assert shown.all("title")[0].text() == "Iterable: messages from 1 Mar 2026 to 30 Mar 2026"


def test_a_click_on_a_heading_sorts_by_value_with_missing_values_last(tmp_path: Path) -> None:
    """Numbers begin with the largest, names with the first. A second click turns the order."""
    rows = [
        campaign(7, "b", 1, human_open_rate="0.09"),
        campaign(8, "c", 1, human_open_rate="0.1"),
        campaign(9, "a", 1),
    ]
    page = render_page(replace(EMPTY, campaigns=figure(*rows)))
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    shown = open_in_browser(without_policy.replace("</body>", f"<script>{CLICKS}</script></body>"), tmp_path)
    assert [each.text() for each in shown.all("p", of_class="order")] == ["c, b, a", "b, c, a", "a, b, c"]
