"""`python -m tests.bi.screenshots`: take the pictures of the dashboards with the demo's data for the documentation."""

import sys

from loader.bi.assets import read_assets
from tests.bi.browser import find_chromium, opened_browser
from tests.bi.dashboard_pages import content_height, open_dashboard
from tests.bi.demo import demo_in_superset
from tests.bi.superset_session import SupersetSession
from tests.support.folders import ROOT

_WIDTH = 1200
# The rows of a dashboard that end above this height are in its picture.
_TALLEST = 1720
_TALLEST_IN_README = 950


def take_pictures() -> None:
    """Write `docs/superset-….png` for each dashboard, and `docs/superset.png` for the README."""
    chromium = find_chromium()
    if chromium is None:
        sys.exit("Error: there is no Chromium on this machine. On Debian and Ubuntu: apt-get install chromium")
    with demo_in_superset() as (url, addresses), opened_browser(chromium) as browser:
        browser.set_cookies(url, SupersetSession(url).log_in_to_pages())
        for dashboard in read_assets().dashboards.values():
            [address] = [each for each in addresses if each.endswith(f"-{dashboard['slug']}/")]
            charts = sum(len(row["charts"]) for row in dashboard["rows"])
            open_dashboard(browser, address, charts, width=_WIDTH)
            pictures = {f"superset-{dashboard['slug']}.png": _TALLEST}
            if dashboard["slug"] == "email-overview":
                pictures["superset.png"] = _TALLEST_IN_README
            for name, limit in pictures.items():
                path = ROOT / "docs" / name
                browser.take_picture(path, width=_WIDTH, height=content_height(browser, limit))
                print(path)  # noqa: T201


if __name__ == "__main__":
    take_pictures()
