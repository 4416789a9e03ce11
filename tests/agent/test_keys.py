"""The cluster key: its file, and what every host derives from it alike."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket import keys


def _env(path: Path) -> dict[str, str]:
    return {"BERTHA_CLUSTER_KEY": str(path)}


def test_a_new_key_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "cluster.key"
    key = keys.make(str(path))
    assert keys.load(str(path)) == key == keys.find(_env(path))
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(keys.KeyFileError, match="there is a key already"):
        keys.make(str(path))
    assert keys.load(str(path)) == key


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert keys.default_path({"XDG_CONFIG_HOME": "/c", "HOME": "/h"}) == "/c/bertha/cluster.key"
    assert keys.default_path({"HOME": "/h"}) == "/h/.config/bertha/cluster.key"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert keys.default_path({"HOME": "/h"}) == keys.SYSTEM_PATH
    assert keys.default_path(_env(tmp_path / "k")) == str(tmp_path / "k")


def test_no_key_is_no_error_unless_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert keys.find({"XDG_CONFIG_HOME": str(tmp_path)}) is None
    with pytest.raises(keys.KeyFileError, match="cannot be read"):
        keys.find(_env(tmp_path / "missing"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "cluster.key"
    keys.make(str(path))
    path.chmod(mode)
    with pytest.raises(keys.KeyFileError, match="chmod 600"):
        keys.load(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    keys.make(str(path))
    os.chown(path, 65534, 65534)
    with pytest.raises(keys.KeyFileError, match="another user"):
        keys.load(str(path))


def test_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(keys.KeyFileError, match="regular file"):
            keys.load(str(path))


@given(st.binary(max_size=300))
def test_anything_in_the_file(data: bytes) -> None:
    fd = os.memfd_create("key")
    try:
        os.write(fd, data)
        os.fchmod(fd, 0o600)
        if len(data) == keys.KEY_SIZE:
            assert keys.load(f"/proc/self/fd/{fd}") == data
        else:  # 64 hexadecimal digits do not come about by chance
            with pytest.raises(keys.KeyFileError, match="bertha key new"):
                keys.load(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_material_is_the_same_in_every_process(tmp_path: Path) -> None:
    key = bytes(range(32))
    code = "from bertha_socket import keys as k; import json; print(json.dumps(k.material(bytes(range(32)))))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(other.stdout) == keys.material(key)
    assert keys.material(key) != keys.material(bytes(32))
    assert keys.key_id(key) != keys.key_id(bytes(32))


def _context(material: dict[str, str], folder: Path, side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    files = {name: folder / name for name in material}
    for name, path in files.items():
        path.write_text(material[name])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(files["certificate"], files["key"])
    context.load_verify_locations(cadata=material["ca"])
    return context


def _shake(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> None:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_side=False)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    left = {client, server}
    for _ in range(10):
        for end in list(left):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                left.discard(end)
        if not left:
            return
    raise AssertionError("no end of the handshake")


def test_both_ends_trust_the_derived_certificate(tmp_path: Path) -> None:
    material = keys.material(b"k" * 32)
    client = _context(material, tmp_path, ssl.PROTOCOL_TLS_CLIENT)
    server = _context(material, tmp_path, ssl.PROTOCOL_TLS_SERVER)
    _shake(client, server)


def test_another_cluster_is_not_trusted(tmp_path: Path) -> None:
    client = _context(keys.material(b"k" * 32), tmp_path, ssl.PROTOCOL_TLS_CLIENT)
    server = _context(keys.material(b"j" * 32), tmp_path, ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(ssl.SSLError):
        _shake(client, server)


def test_command(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    run = [sys.executable, "-m", "bertha_socket.cli.main", "key"]
    made = subprocess.run([*run, "new", "--file", path], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0 and str(path) in made.stdout
    shown = subprocess.run(
        [*run, "show-id"], env=os.environ | _env(path), capture_output=True, text=True, timeout=60
    )
    assert shown.stdout.strip() == keys.key_id(keys.load(str(path)))
    assert shown.stdout.strip() in made.stdout
    again = subprocess.run([*run, "new", "--file", path], capture_output=True, text=True, timeout=60)
    assert again.returncode == 1 and again.stderr.count("\n") == 1
