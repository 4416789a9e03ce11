"""What carriers are told of keys and certificates."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bertha_socket import keys
from bertha_socket.agent.carriers import MESSAGE_MAX, Context
from bertha_socket.agent.secrets import SecretError, Secrets, named_files, read
from bertha_socket.carrier.control import Control
from bertha_socket.dag import parse

ME = os.geteuid()


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cluster key is looked for; there is none yet."""
    path = tmp_path / "cluster.key"
    monkeypatch.setattr(keys, "SYSTEM_PATH", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("BERTHA_CLUSTER_KEY", raising=False)
    return path


@pytest.fixture
def pems(tmp_path: Path) -> dict[str, str]:
    """Files with a certificate and its key."""
    material = keys.material(bytes(32))
    found = {}
    for name, part in (("cert", "certificate"), ("key", "key"), ("ca", "ca")):
        path = tmp_path / f"{name}.pem"
        path.write_text(material[part])
        found[name] = str(path)
    return found


def dag_of(files: dict[str, str]) -> str:
    given = [f'{name}="{path}"' for name, path in files.items()]
    return f"encrypt({', '.join(given)})"


def test_named_files(pems: dict[str, str]) -> None:
    assert named_files(None) == named_files(parse("encrypt()")) == named_files(parse("compress()")) == {}
    assert named_files(parse("compress() |> " + dag_of(pems))) == pems
    assert named_files(parse(f'encrypt("{pems["cert"]}", "{pems["key"]}")')) == {
        "cert": pems["cert"],
        "key": pems["key"],
    }


def test_reading(pems: dict[str, str], tmp_path: Path) -> None:
    assert read(pems) == keys.material(bytes(32))
    del pems["ca"]
    assert read(pems)["ca"] == read(pems)["certificate"]
    (tmp_path / "junk").write_bytes(b"\xff" * 100)
    (tmp_path / "long").write_text("-----BEGIN " + "x" * 100_000)
    os.mkfifo(tmp_path / "fifo")
    for bad in ("junk", "long", "fifo", "missing", "."):
        with pytest.raises(SecretError, match="encrypt: "):
            read({**pems, "key": str(tmp_path / bad)})
    with pytest.raises(SecretError, match="absolute"):
        read({**pems, "key": "key.pem"})
    with pytest.raises(SecretError, match="key is missing"):
        read({"cert": pems["cert"]})


def test_of_a_chain_the_first_is_trusted(pems: dict[str, str], tmp_path: Path) -> None:
    """Who has signed it has signed others, too."""
    own, above = (keys.material(bytes([n]) * 32)["certificate"] for n in (1, 2))
    Path(pems["cert"]).write_text(Path(pems["key"]).read_text() + own + "a remark\n" + above)
    assert read(pems)["ca"] == Path(pems["ca"]).read_text()
    del pems["ca"]
    found = read(pems)
    assert found["ca"] == own and above in found["certificate"]
    Path(pems["cert"]).write_text(Path(pems["key"]).read_text())
    with pytest.raises(SecretError, match="no certificate"):
        read(pems)


def _padded(pems: dict[str, str], tmp_path: Path, size: int) -> dict[str, str]:
    """The same with remarks, so that they have so many bytes each."""
    found = {}
    for name, path in pems.items():
        text = Path(path).read_text()
        (tmp_path / f"{name}.long").write_text(text + "#" * (size - len(text) - 1) + "\n")
        found[name] = str(tmp_path / f"{name}.long")
    return found


def test_as_much_as_a_carrier_can_be_told(key_file: Path, pems: dict[str, str], tmp_path: Path) -> None:
    """Each may have 64 KiB; and what is too much together is no reason to do with somebody else's."""
    secrets = Secrets()
    told: list[Context] = []
    secrets.changed = told.append
    secrets.for_listener(5, parse(dag_of(_padded(pems, tmp_path, 42 << 10))), ME)
    assert 120 << 10 < len(told[-1].encode()) <= MESSAGE_MAX
    with pytest.raises(SecretError, match=r"cert.long, .*key.long, .*ca.long: together more than 127 KiB"):
        secrets.for_listener(5, parse(dag_of(_padded(pems, tmp_path, 43 << 10))), ME)
    assert told[-1] == Context(5, {}, None, (ME,))


def test_listeners_contexts_are_kept(key_file: Path, pems: dict[str, str], tmp_path: Path) -> None:
    """Of whose context a carrier is not told, that one has everybody's there."""
    secrets = Secrets()
    secrets.for_listener(5, parse(dag_of(pems)), ME)
    for number in range(1100):
        ca = tmp_path / f"ca{number}.pem"
        os.link(pems["ca"], ca)
        secrets.for_client(parse(dag_of({**pems, "ca": str(ca)})), ME)
    found = [c.listener for c in secrets.contexts()]
    assert 5 in found and len(found) == 2 + 1024


def test_a_new_cluster_key_is_told(key_file: Path) -> None:
    secrets = Secrets()
    told: list[Context] = []
    secrets.changed = told.append
    assert secrets.contexts() == [Context(0, None, None)]
    key = keys.make(keys.default_path())
    assert secrets.cluster_key() == key
    assert told == [Context(0, keys.material(key), key)]
    assert secrets.cluster_key() == key and len(told) == 1


def test_a_listener_with_certificates_of_its_own(key_file: Path, pems: dict[str, str]) -> None:
    secrets = Secrets()
    told: list[Context] = []
    secrets.changed = told.append
    secrets.for_listener(5, parse("encrypt()"), ME)
    assert not told
    secrets.for_listener(5, parse(dag_of(pems)), ME)
    assert told == [Context(5, keys.material(bytes(32)), None, (ME,))]
    assert secrets.contexts()[1:] == told
    os.unlink(pems["key"])
    with pytest.raises(SecretError):
        secrets.for_listener(5, parse(dag_of(pems)), ME)
    assert told[-1] == Context(5, {}, None, (ME,))  # and not the cluster's
    secrets.drop(5)
    assert len(secrets.contexts()) == 1


def test_a_client_with_certificates_of_its_own(key_file: Path, pems: dict[str, str]) -> None:
    secrets = Secrets()
    assert secrets.for_client(parse("encrypt()"), ME) == 0
    number = secrets.for_client(parse(dag_of(pems)), ME)
    assert 0 < number < 1 << 64 and number == secrets.for_client(parse(dag_of(pems)), ME)
    del pems["ca"]
    assert secrets.for_client(parse(dag_of(pems)), ME) not in (0, number)


@pytest.mark.parametrize("before", [True, False])
def test_its_own_certificates_come_with_the_cluster_key(
    key_file: Path, pems: dict[str, str], before: bool
) -> None:
    """Also those of the first one, and of those who came before the key did: a carrier that has none for a
    listener serves clients who have none."""
    key = keys.make(keys.default_path()) if before else None
    secrets = Secrets()
    secrets.for_listener(5, parse(dag_of(pems)), ME)
    number = secrets.for_client(parse(dag_of(pems)), ME)
    key = key or keys.make(keys.default_path())
    assert {c.listener: c.key for c in secrets.contexts()} == {0: key, 5: key, number: key}


def test_a_listener_without_certificates_any_more_has_the_clusters(
    key_file: Path, pems: dict[str, str]
) -> None:
    """One under several addresses may have some by the rule of one of them only."""
    key = keys.make(keys.default_path())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        control = Control(theirs, lambda sock, user: None)
        secrets = Secrets()
        secrets.changed = lambda context: ours.send(context.encode()) and None
        for context in secrets.contexts():
            secrets.changed(context)
        secrets.for_listener(5, parse(dag_of(pems)), ME)
        control.catch_up()
        found = control.secrets(5, ME)
        assert found is not None and found.material == keys.material(bytes(32))
        secrets.for_listener(5, parse("encrypt()"), ME)
        control.catch_up()
        assert control.secrets(5, ME) == control.secrets(0, ME)
        found = control.secrets(5, ME)
        assert found is not None and (found.key, found.material) == (key, keys.material(key))


def test_a_key_that_cannot_be_used(key_file: Path, pems: dict[str, str]) -> None:
    """It is no reason to serve those who have none; nor is it when there was a good one before."""
    good = keys.make(keys.default_path())
    text = Path(keys.default_path()).read_text()
    secrets = Secrets()
    assert secrets.contexts()[0].key == good
    Path(keys.default_path()).write_text("nonsense")
    assert secrets.contexts()[0].key == good
    secrets = Secrets()
    told: list[Context] = []
    secrets.changed = told.append
    secrets.for_listener(5, parse(dag_of(pems)), ME)
    found = {c.key for c in secrets.contexts()}
    assert len(found) == 1 and found != {None} and found != {good}
    Path(keys.default_path()).write_text(text)
    assert secrets.cluster_key() == good
    assert {c.listener: c.key for c in told} == {0: good, 5: good}


def test_nobody_elses(key_file: Path, pems: dict[str, str]) -> None:
    with pytest.raises(SecretError, match="another user"):
        Secrets().for_client(parse(dag_of(pems)), ME + 1)


def test_whose_programs_may_have_them(key_file: Path, pems: dict[str, str]) -> None:
    """A carrier serves several users, and a program names the number itself."""
    secrets = Secrets()
    number = secrets.for_client(parse(dag_of(pems)), ME)
    secrets.for_listener(5, parse(dag_of(pems)), ME, (33, 34))
    assert {c.listener: c.uids for c in secrets.contexts()} == {0: (), number: (ME,), 5: (ME, 33, 34)}
    Path(pems["key"]).unlink()
    with pytest.raises(SecretError):
        secrets.for_listener(5, parse(dag_of(pems)), ME, (33,))
    assert {c.listener: c.uids for c in secrets.contexts()} == {0: (), number: (ME,), 5: (ME, 33)}
