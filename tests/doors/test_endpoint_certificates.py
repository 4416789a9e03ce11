"""`encrypt(cert=..., key=..., ca=...)` in programs by bertha_socket.new(): read here, at both ends."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bertha_socket
from bertha_socket import keys
from bertha_socket._endpoint import EndpointError
from tests.harness import require_program

Files = tuple[Path, Path]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is redirected, and there is no cluster key."""
    monkeypatch.setenv("BERTHA_DISABLE", "1")
    monkeypatch.setattr(keys, "find", lambda: None)


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Files:
    directory = tmp_path_factory.mktemp("another")
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-subj", "/CN=other", "-days", "2", "-keyout", f"{directory}/key", "-out", f"{directory}/cert"]
    subprocess.run([require_program("openssl"), *words], check=True, capture_output=True, timeout=30)
    return directory / "cert", directory / "key"


def _encrypt(files: Files) -> str:
    return f'encrypt(cert="{files[0]}", key="{files[1]}")'


def _dag(files: Files, bottom: str) -> str:
    return f"frame() |> {_encrypt(files)}{bottom}"


@contextmanager
def _server(dag: str) -> Iterator[Any]:
    """Echoes to one client."""

    def serve() -> None:
        try:
            with listener.accept() as connection:
                for item in connection:
                    connection.send(item)
        except OSError:
            return

    listener = bertha_socket.new("server", dag).listen(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener
    finally:
        listener.close()
        thread.join(20)
        assert not thread.is_alive()


def _exchange(dag: str, address: tuple[str, int]) -> bytes:
    """One message there and back."""
    with bertha_socket.new("client", dag).connect(address) as connection:
        connection.send(b"x")
        answer: bytes = connection.recv(10)
        return answer


both_kinds = pytest.mark.parametrize("bottom", ["", " |> reliable()"], ids=["stream", "datagrams"])


@both_kinds
def test_both_ends_have_it(certificate: Files, bottom: str) -> None:
    """Without `ca` the other end must have the same."""
    dag = _dag(certificate, bottom)
    with _server(dag) as listener, bertha_socket.new("client", dag).connect(listener.address) as connection:
        connection.send(b"secret")
        assert connection.recv(10) == b"secret"
        assert "encrypt" in [c.type for c in connection.plan.chunnels]
        assert str(certificate[0]) not in str(connection.plan), "a path is nobody else's business"


@both_kinds
def test_an_authority(certificate: Files, another: Files, bottom: str) -> None:
    """`ca` is whose certificates are taken."""

    def dag(own: Files, theirs: Files) -> str:
        return f'frame() |> encrypt(cert="{own[0]}", key="{own[1]}", ca="{theirs[0]}"){bottom}'

    with _server(dag(certificate, another)) as listener:
        client = bertha_socket.new("client", dag(another, certificate))
        with client.connect(listener.address) as connection:
            connection.send(b"secret")
            assert connection.recv(10) == b"secret"


def test_another_certificate_is_refused(certificate: Files, another: Files) -> None:
    with _server(_dag(certificate, "")) as listener:
        with pytest.raises(EndpointError, match="encrypt: "):
            _exchange(_dag(another, ""), listener.address)


def test_another_certificate_on_datagrams(certificate: Files, another: Files) -> None:
    """The plan is agreed on before TLS has spoken, so it may be the first receive that fails."""
    with _server(_dag(certificate, " |> reliable()")) as listener:
        with pytest.raises(EndpointError, match="encrypt: "):
            _exchange(_dag(another, " |> reliable()"), listener.address)


@both_kinds
def test_a_client_without_one(certificate: Files, bottom: str) -> None:
    with _server(_dag(certificate, bottom)) as listener:
        with pytest.raises(EndpointError, match="encrypt cannot be had: no implementation at the client"):
            bertha_socket.new("client").connect(listener.address)
        if bottom:
            listener.close()


@both_kinds
@pytest.mark.parametrize(
    ("what", "said"), [("gone", "No such file"), ("text", "not a PEM"), ("others", "cannot be used")]
)
def test_files_that_cannot_be_used(
    certificate: Files, another: Files, tmp_path: Path, bottom: str, what: str, said: str
) -> None:
    """One error that says which, at either end, before anybody is spoken to."""
    (tmp_path / "text").write_text("not a certificate")
    files = {
        "gone": (tmp_path / "gone", certificate[1]),
        "text": (tmp_path / "text", certificate[1]),
        "others": (certificate[0], another[1]),
    }[what]
    endpoint = bertha_socket.new("x", _dag(files, bottom))
    for call in (endpoint.listen, endpoint.connect):
        with pytest.raises(OSError, match=f"encrypt: .*{said}") as caught:
            call(("127.0.0.1", 1 if call == endpoint.connect else 0))
        assert "\n" not in str(caught.value)
