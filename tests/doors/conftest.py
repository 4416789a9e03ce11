"""A certificate for the tests that speak TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.harness import require_program


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    words += ["-days", "2", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([require_program("openssl"), *words], check=True, capture_output=True, timeout=30)
    return certificate, key
