"""A session of the tests with the API and the pages of a Superset."""

import io
import json
import zipfile
from typing import Any

import requests

from tests.bi.superset_process import PASSWORD, USER

_SECONDS = 120

Condition = dict[str, Any]
Row = tuple[Any, ...]


class SupersetSession:
    """A session of the user that `superset_process` makes."""

    def __init__(self, url: str) -> None:
        """Log in to a Superset at an address."""
        self.url = url
        self._session = requests.Session()
        # Without this header, errors come as pages.
        self._session.headers["Accept"] = "application/json"
        login = {"username": USER, "password": PASSWORD, "provider": "db", "refresh": False}
        self._session.headers["Authorization"] = f"Bearer {self._post('security/login', json=login)['access_token']}"
        self._session.headers["X-CSRFToken"] = self._get("security/csrf_token/")["result"]
        self._session.headers["Referer"] = url

    def _get(self, path: str, **parameters: str) -> Any:
        done = self._session.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=_SECONDS)
        assert done.ok, done.text
        return done.json()

    def _post(self, path: str, **content: Any) -> Any:
        done = self._session.post(f"{self.url}/api/v1/{path}", timeout=_SECONDS, **content)
        assert done.ok, done.text
        return done.json()

    def chart_ids(self) -> dict[str, int]:
        """Return Superset's ids of the charts, by UUID."""
        found = self._get("chart/", q="(columns:!(id,uuid),page_size:200)")["result"]
        return {chart["uuid"]: chart["id"] for chart in found}

    def query(self, uuid: str, *added: Condition, without_own: bool = False) -> list[Row]:
        """Run the stored query of a chart and return its rows.

        Args:
            uuid: The UUID of the chart.
            added: Conditions that a dashboard adds.
            without_own: Leave out the conditions of the chart itself.
        """
        chart = self._get(f"chart/{self.chart_ids()[uuid]}")["result"]
        context = json.loads(chart["query_context"]) | {"force": True}
        for each in context["queries"]:
            each["filters"] = [*([] if without_own else each["filters"]), *added]
        [result] = self._post("chart/data", json=context)["result"]
        return [tuple(row[name] for name in result["colnames"]) for row in result["data"]]

    def export(self) -> dict[str, str]:
        """Return all assets by file, without the time of the export."""
        done = self._session.get(f"{self.url}/api/v1/assets/export/", timeout=_SECONDS)
        with zipfile.ZipFile(io.BytesIO(done.content)) as opened:
            files = {name.split("/", 1)[1]: opened.read(name).decode() for name in opened.namelist()}
        return {name: text for name, text in files.items() if name != "metadata.yaml"}

    def import_file(self, archive: bytes, **form: str) -> requests.Response:
        """Import a file as the pages of Superset do, and return the answer."""
        files = {"formData": ("dashboards.zip", archive, "application/zip")}
        url = f"{self.url}/api/v1/dashboard/import/"
        return self._session.post(url, files=files, data=form, timeout=_SECONDS)

    def log_in_to_pages(self) -> dict[str, str]:
        """Return the cookies of a browser that has logged in."""
        form = {"username": USER, "password": PASSWORD, "csrf_token": str(self._session.headers["X-CSRFToken"])}
        with requests.Session() as pages:
            pages.headers["Referer"] = self.url
            pages.cookies.update(self._session.cookies)
            done = pages.post(f"{self.url}/login/", data=form, timeout=_SECONDS)
            assert done.ok, done.text
            assert "/login" not in done.url, "Superset refuses the user"
            return dict(pages.cookies)
