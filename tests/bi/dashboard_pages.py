"""Opens dashboards in Chromium and waits until all charts are drawn."""

from tests.bi.browser import Browser

# A page is tall enough for all rows, because Superset draws only the charts in sight.
_HEIGHT = 2600
_MARGIN = 24
_CHARTS = "document.querySelectorAll('.dashboard-chart').length"
_BUSY = "document.querySelector('.loading, [data-test=\"loading-indicator\"], .ant-skeleton')"
_DRAWN = (
    "[...document.querySelectorAll('.dashboard-chart')]"
    ".every(chart => chart.querySelector('canvas, table, .header-line, .ant-empty'))"
)


def open_dashboard(
    browser: Browser, url: str, charts: int, *, width: int, dark: bool = False, standalone: bool = True
) -> None:
    """Open a dashboard, and wait until each of its charts shows something, or says that it has no data.

    Args:
        browser: A browser with a session of Superset.
        url: The address of the dashboard.
        charts: The number of its charts.
        width: The width of the window.
        dark: Whether the person prefers dark pages.
        standalone: Whether the page hides the navigation of Superset.
    """
    browser.open(f"{url}?standalone=1" if standalone else url, width=width, height=_HEIGHT, dark=dark)
    browser.wait_until(f"{_CHARTS} === {charts} && !{_BUSY} && {_DRAWN}")


def content_height(browser: Browser, limit: int) -> int:
    """Return the height of the open dashboard down to the end of the last chart that ends above a limit."""
    height: int = browser.evaluate(
        "Math.ceil(Math.max(...[...document.querySelectorAll('.dashboard-chart')]"
        ".map(chart => chart.getBoundingClientRect().bottom)"
        f".filter(bottom => bottom < {limit})) + {_MARGIN})"
    )
    return height
