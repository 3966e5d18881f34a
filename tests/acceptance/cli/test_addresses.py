"""Addresses and ports: an impossible value is refused before anything listens, and the error names its option."""

import socket

import pytest

from tests.conftest import Loader


@pytest.mark.parametrize("command", ["serve", "up"])
@pytest.mark.parametrize("port", ["70000", "65536", "-1", "http"])
def test_d2_an_impossible_port_is_refused(run_loader: Loader, command: str, port: str) -> None:
    """A number that wraps around would open another port."""
    refused = run_loader(command, f"--port={port}")
    assert refused.returncode == 2
    assert "'--port'" in refused.stderr


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 100, "::1%nowhere"])
def test_d2_the_error_for_an_unusable_host_names_the_host_option(run_loader: Loader, host: str) -> None:
    """The error is about the address and names its option."""
    refused = run_loader("serve", f"--host={host}", "--port=0")
    assert refused.returncode == 2
    assert host in refused.stderr
    assert "--host" in refused.stderr
    assert "--port" not in refused.stderr


def test_d2_the_error_for_a_port_in_use_suggests_another_port(run_loader: Loader) -> None:
    """The error is about the port and names its option."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run_loader("serve", f"--port={port}")
    assert refused.returncode == 2
    assert f"127.0.0.1 port {port}: Address already in use. Choose another port with --port" in refused.stderr


def test_d2_an_impossible_embedded_port_is_refused(run_loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error quotes the reason and names the setting."""
    monkeypatch.setenv("LOADER_EMBEDDED_PORT", "70000")
    refused = run_loader("status")
    assert refused.returncode == 2
    assert "LOADER_EMBEDDED_PORT" in refused.stderr
