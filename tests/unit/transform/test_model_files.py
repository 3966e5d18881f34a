"""The yml of the models, written from the catalogue."""

import shutil
from pathlib import Path

import pytest
import yaml

from loader.transform.model_files import generate_models, main, render_model
from tests.support.folders import ROOT

PROJECT = ROOT / "dbt_project"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the catalogue and of the models."""
    for name in ("catalogue", "models"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    return tmp_path


def test_the_files_of_the_project_follow_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    """`make lint` checks the same, and names each file that differs."""
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_a_file_that_differs_is_named_and_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check changes nothing; without `--check`, the file follows the catalogue again."""
    monkeypatch.setattr("loader.transform.model_files.bundled", lambda _: project)
    path = project / "models" / "iterable" / "sms_bounced.yml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("data_type: text", "data_type: bigint", 1), encoding="utf-8")
    assert main(["--check"]) == 1
    assert "models/iterable/sms_bounced.yml differs from the catalogue. Run `make format`." in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") != text
    assert main([]) == 0
    assert path.read_text(encoding="utf-8") == text


def test_a_new_column_is_described_once(project: Path) -> None:
    """A row of columns.csv and a name in tables.yml give a column with its type, origin and description."""
    with (project / "catalogue" / "columns.csv").open("a", encoding="utf-8") as file:
        file.write("coupon_code,text,,couponCode,Coupon shown in the message.\n")
    tables = project / "catalogue" / "tables.yml"
    catalogue = yaml.safe_load(tables.read_text(encoding="utf-8"))
    next(table for table in catalogue["tables"] if table["name"] == "sms_bounced")["columns"].append("coupon_code")
    tables.write_text(yaml.safe_dump(catalogue), encoding="utf-8")

    files = generate_models(project)
    [model] = yaml.safe_load(files[project / "models" / "iterable" / "sms_bounced.yml"])["models"]
    assert model["columns"][-1] == {
        "name": "coupon_code",
        "data_type": "text",
        "description": "{{ doc('property_coupon_code') }}",
        "config": {"meta": {"property": "couponCode"}},
    }
    described = files[project / "models" / "iterable" / "columns.md"]
    assert "{% docs property_coupon_code %}Coupon shown in the message.{% enddocs %}" in described


def test_unit_tests_in_a_yml_stay(project: Path) -> None:
    """People write them at the end of the yml of a model."""
    path = project / "models" / "iterable" / "email_opened.yml"
    text = path.read_text(encoding="utf-8")
    assert "\nunit_tests:\n" in text
    assert generate_models(project)[path] == text


def test_tracks_reads_the_context_alone() -> None:
    """Where another table also takes a column from a property, tracks does not."""
    files = generate_models(PROJECT)
    [model] = yaml.safe_load(files[PROJECT / "models" / "iterable" / "tracks.yml"])["models"]
    assert all("property" not in column.get("config", {}).get("meta", {}) for column in model["columns"])


def test_a_model_written_to_yml_is_read_back_unchanged() -> None:
    """Long texts, Jinja and colons included."""
    model = {"name": "a", "description": "x: " + "y" * 300 + " {{ doc('id') }} é", "columns": []}
    assert yaml.safe_load(render_model(model)) == {"version": 2, "models": [model]}
    assert "y" * 300 in render_model(model)
