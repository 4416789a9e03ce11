"""Whose certificate is taken, and whose is not: in both carriers."""

from __future__ import annotations

import contextlib
import datetime
import mmap
import os
import time
from pathlib import Path

import msgpack
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bertha_socket.agent.secrets import read
from tests.carrier.host import (
    PENDING,
    READY,
    REFUSED,
    Carried,
    CarrierHost,
    chunnel,
    plan_of,
    tcp_pair,
    wait_until_read,
)

Hosts = tuple[CarrierHost, CarrierHost]
PLAN = plan_of(chunnel("encrypt", "tls1.3"))


class Signed:
    """A key, and a certificate of it by another (None: by itself)."""

    def __init__(self, name: str, by: Signed | None, authority: bool) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(by.name if by is not None else self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .sign(by.key if by is not None else self.key, hashes.SHA256())
        )
        self.pem = made.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        form = serialization.PrivateFormat.PKCS8
        made = self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        return made.decode()


class Family:
    """A root, an authority that it has signed, and two hosts of that: each file is a chain."""

    def __init__(self, folder: Path) -> None:
        self.root = Signed("root", None, True)
        self._between = Signed("between", self.root, True)
        self._folder = folder

    def files(self, name: str) -> dict[str, str]:
        """A new host's files: its chain, without the root, and its key."""
        made = Signed(name, self._between, False)
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        cert.write_text("a remark\n" + made.pem + self._between.pem)
        key.write_text(made.key_pem)
        return {"cert": str(cert), "key": str(key)}


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path)


def _outcome(hosts: Hosts, states: tuple[int, int], context: int = 0) -> bytes:
    """`context`: of the client's rule."""
    carried = Carried(*hosts, PLAN, context=context)
    try:
        with contextlib.suppress(OSError):  # it may be refused already
            carried.client.sendall(b"hello")
        carried.wait(*states)
        carried.server.settimeout(20)
        try:
            return carried.server.recv(100)
        except ConnectionResetError:
            return b""
    finally:
        carried.close()


@pytest.mark.parametrize("told", [True, False], ids=["agent", "carrier"])
def test_a_chain_is_no_authority(hosts: Hosts, family: Family, told: bool) -> None:
    """Without `ca` it is this very certificate: the same authority may have signed anybody's."""
    client, server = hosts
    own = read(family.files("server"))
    if not told:  # by the carrier's own rule
        del own["ca"]
    server.context(listener=7, material=own)
    client.context(material=read(family.files("stranger")) | {"ca": family.root.pem})
    assert _outcome(hosts, (REFUSED, REFUSED)) == b""
    client.context(material=own)
    assert _outcome(hosts, (READY, READY)) == b"hello"


def test_with_an_authority_it_is_who_has_been_signed(hosts: Hosts, family: Family) -> None:
    """By it, or below it; it need not be a root."""
    client, server = hosts
    between = read(family.files("server"))["certificate"].split("-----END CERTIFICATE-----\n")[1]
    for ca in (family.root.pem, between + "-----END CERTIFICATE-----\n"):
        server.context(listener=7, material=read(family.files("server")) | {"ca": ca})
        client.context(material=read(family.files("client")) | {"ca": ca})
        assert _outcome(hosts, (READY, READY)) == b"hello"


_LONG = "#" * 20_000 + "\n"


def test_a_long_context_comes_whole(hosts: Hosts, family: Family) -> None:
    """A certificate that is cut off would be everybody's instead."""
    client, server = hosts
    own = {name: text + 2 * _LONG for name, text in read(family.files("server")).items()}
    server.context(listener=7, material=own)
    client.context(material=own)
    assert _outcome(hosts, (READY, READY)) == b"hello"


def test_more_than_there_is_room_for(hosts: Hosts, family: Family) -> None:
    """Half a message is no message; the agent's next words would be to one who has not heard this."""
    server = hosts[1]
    server.context(material=None, key=b"k" * 32)
    server.context(listener=7, material=read(family.files("server")) | {"ca": 7 * _LONG})
    server.control.settimeout(10)
    try:
        while (said := server.control.recv(65536)) and msgpack.unpackb(said) == {"op": "idle"}:
            pass
    except ConnectionResetError:
        said = b""
    assert said == b""


def test_certificates_that_cannot_be_used_are_not_everybodys(hosts: Hosts, family: Family) -> None:
    everybodys = read(family.files("everybody"))
    for host in hosts:
        host.context(material=everybodys)
    assert _outcome(hosts, (READY, READY)) == b"hello"
    hosts[1].context(listener=7, material={})
    assert _outcome(hosts, (REFUSED, REFUSED)) == b""


def test_a_client_has_its_own_or_none(hosts: Hosts, family: Family) -> None:
    """One that was told a number is not served with everybody's: its carrier has not heard of that one."""
    everybodys = read(family.files("everybody"))
    for host in hosts:
        host.context(material=everybodys)
    assert _outcome(hosts, (REFUSED, REFUSED), context=9) == b""
    hosts[0].context(listener=9, material=everybodys)
    assert _outcome(hosts, (READY, READY), context=9) == b"hello"


def _page(host: CarrierHost) -> mmap.mmap:
    """What an agent shares with its carrier; it has something to say that it has no room for."""
    fd = os.memfd_create("behind", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, mmap.PAGESIZE)
    page = mmap.mmap(fd, mmap.PAGESIZE)
    host.send({"op": "behind"}, fd)
    os.close(fd)
    page[0] = 1
    wait_until_read(host.control)  # an agent says so before there is any program
    time.sleep(0.05)
    return page


def test_no_connection_comes_before_its_secrets(hosts: Hosts, family: Family) -> None:
    """The program has its own way to the carrier, and the agent's words may wait for room."""
    everybodys, own = (read(family.files(name)) for name in ("everybody", "server"))
    hosts[0].context(material=own)
    hosts[1].context(material=everybodys)
    with _page(hosts[1]) as page:
        carried = Carried(*hosts, PLAN)
        carried.client.sendall(b"hello")
        time.sleep(0.3)
        assert carried.server_status.state == PENDING
        hosts[1].context(listener=7, material=own)
        page[0] = 0
        carried.wait(READY, READY)
        assert carried.server.recv(100) == b"hello"
        carried.close()


def test_one_whose_agent_went_before_it_had_said_all(hosts: Hosts, family: Family) -> None:
    """It takes no more of the programs that it has; what it carries goes on."""
    everybodys = read(family.files("everybody"))
    for host in hosts:
        host.context(material=everybodys)
    before = Carried(*hosts, PLAN)
    before.client.sendall(b"hello")
    before.wait(READY, READY)
    server = hosts[1]
    with _page(server):
        server.shim.settimeout(10)
        server.control.close()
        a, b = tcp_pair()
        with a, b:
            carried, _ = server.carry(b)
        with carried, contextlib.suppress(ConnectionResetError):
            assert server.shim.recv(1) == b""
        before.client.sendall(b" again")
        before.server.settimeout(10)
        time.sleep(0.1)
        assert before.server.recv(100) == b"hello again"
        before.close()


NOBODY = 65534


def _of_another_user(host: CarrierHost) -> None:
    """Its program is not of the user whose certificates it names."""
    host.shim.close()
    host.shim = host.new_shim(uid=NOBODY)


def test_a_listener_that_is_another_users(hosts: Hosts, family: Family) -> None:
    """Its number stands where everybody can read it: whoever names it need not have its socket."""
    client, server = hosts
    own = read(family.files("server"))
    client.context(material=own)
    _of_another_user(server)
    for uids in ((), (os.getuid(),), (NOBODY + 1, NOBODY - 1)):
        server.context(listener=7, material=own, uids=uids)
        carried = Carried(*hosts, PLAN)
        with contextlib.suppress(OSError):
            carried.client.sendall(b"hello")
        carried.wait(REFUSED, REFUSED)
        assert "another user's" in carried.server_status.detail
        carried.client.settimeout(20)
        carried.server.settimeout(20)
        for end in (carried.client, carried.server):
            try:
                assert end.recv(100) == b""
            except ConnectionResetError:
                pass
        carried.close()
    server.context(listener=7, material=own, uids=(os.getuid(), NOBODY))
    assert _outcome(hosts, (READY, READY)) == b"hello"


def test_roots_programs_serve_anywhere(hosts: Hosts, family: Family) -> None:
    """They may have every key: a worker that is root's still, of a listener that is not."""
    client, server = hosts
    own = read(family.files("server"))
    client.context(material=own)
    server.context(listener=7, material=own, uids=(NOBODY,))
    server.shim.close()
    server.shim = server.new_shim(uid=0)
    assert _outcome(hosts, (READY, READY)) == b"hello"


def test_who_says_nothing_of_users_means_nobody(hosts: Hosts, family: Family) -> None:
    client, server = hosts
    own = read(family.files("server"))
    client.context(material=own)
    _of_another_user(server)
    for said in ({}, {"uids": None}, {"uids": NOBODY}, {"uids": ["65534", b"x", None, -1, 1 << 40]}):
        server.send({"op": "context", "listener": 7, "material": own, "key": None} | said)
        assert _outcome(hosts, (REFUSED, REFUSED)) == b""


@pytest.mark.parametrize("number", [9, 7], ids=["rule", "listener"])
def test_a_clients_certificates_that_are_another_users(hosts: Hosts, family: Family, number: int) -> None:
    """The number of a rule's can be computed from its files' names, and a listener's can be read."""
    client, server = hosts
    own = read(family.files("server"))
    server.context(listener=7, material=own)
    client.context(listener=number, material=own)
    _of_another_user(client)
    assert _outcome(hosts, (REFUSED, REFUSED), context=number) == b""
    client.context(listener=number, material=own, uids=(NOBODY,))
    assert _outcome(hosts, (READY, READY), context=number) == b"hello"


def test_everybodys_are_everybodys(hosts: Hosts, family: Family) -> None:
    everybodys = read(family.files("everybody"))
    for host in hosts:
        host.context(material=everybodys, uids=())
        _of_another_user(host)
    assert _outcome(hosts, (READY, READY)) == b"hello"
