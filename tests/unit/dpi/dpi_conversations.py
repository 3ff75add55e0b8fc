"""Conversations for the tests: real TLS and QUIC bytes made in memory, put into packets here."""

from __future__ import annotations

import functools
import ssl
import struct
import subprocess
import tempfile
from pathlib import Path

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from nedge.dpi.samples import CLIENT, SERVER, tcp, tcp_request, udp

CERT_NAMES = ("cert.example.org", "alt.example.org")
CERT_DAYS = 30


def stream(port: int, turns: list[tuple[str, bytes]], size: int = 1400) -> list[bytes]:
    """A TCP conversation: the handshake, then turns of ("c" or "s", bytes), cut into segments of `size`."""
    client, server = (CLIENT, 49152), (SERVER, port)
    packets = tcp_request(port, b"")[:3]
    seq = {"c": 1001, "s": 5001}
    for side, data in turns:
        source, destination = (client, server) if side == "c" else (server, client)
        other = "s" if side == "c" else "c"
        for start in range(0, len(data), size):
            part = data[start : start + size]
            packets.append(tcp(source, destination, part, seq=seq[side], ack=seq[other]))
            seq[side] += len(part)
    return packets


@functools.cache
def certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for CERT_NAMES and its key, as PEM."""
    with tempfile.TemporaryDirectory() as directory:
        cert, key = Path(directory, "cert.pem"), Path(directory, "key.pem")
        names = ",".join(f"DNS:{name}" for name in CERT_NAMES)
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-nodes", "-keyout", str(key), "-out", str(cert), "-days", str(CERT_DAYS)),
                *("-subj", f"/O=Nedge Test/CN={CERT_NAMES[0]}", "-addext", f"subjectAltName={names}"),
            ],
            check=True,
            capture_output=True,
        )
        return cert.read_bytes(), key.read_bytes()


def certificate_validity() -> tuple[int, int]:
    """The epoch seconds between which `certificate()` is valid."""
    parsed = x509.load_pem_x509_certificate(certificate()[0])
    return int(parsed.not_valid_before_utc.timestamp()), int(parsed.not_valid_after_utc.timestamp())


def certificate_sha1() -> str:
    """The SHA-1 of `certificate()`, in hex."""
    return x509.load_pem_x509_certificate(certificate()[0]).fingerprint(hashes.SHA1()).hex()


@functools.cache
def tls_handshake(version: str, name: str = CERT_NAMES[0]) -> list[tuple[str, bytes]]:
    """The turns of a handshake with `ssl.TLSVersion[version]`; the certificate is readable up to TLSv1_2."""
    with tempfile.TemporaryDirectory() as directory:
        cert, key = Path(directory, "cert.pem"), Path(directory, "key.pem")
        cert.write_bytes(certificate()[0])
        key.write_bytes(certificate()[1])
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_context.load_cert_chain(cert, key)
    client_context = ssl.create_default_context()
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    client_context.minimum_version = client_context.maximum_version = ssl.TLSVersion[version]
    client_context.set_alpn_protocols(["h2", "http/1.1"])
    server_context.set_alpn_protocols(["h2"])

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    turns: list[tuple[str, bytes]] = []
    done: set[str] = set()
    while len(done) < 2:
        # Each side reads what the other wrote, after it was recorded.
        for side, endpoint, outgoing in (("c", client, to_server), ("s", server, to_client)):
            if side not in done:
                try:
                    endpoint.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    pass
            if data := outgoing.read():
                turns.append((side, data))
                outgoing.write(data)
    return turns


def quic_initial(name: str) -> list[bytes]:
    """The first datagrams of a QUIC v1 client."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=name)
    connection = QuicConnection(configuration=configuration)
    connection.connect((SERVER, 443), now=0.0)
    return [udp((CLIENT, 49154), (SERVER, 443), data) for data, _ in connection.datagrams_to_send(now=0.0)]


def ssh() -> list[bytes]:
    """Banners and key exchange offers of both sides."""

    def kexinit() -> bytes:
        lists = (b"curve25519-sha256", b"ssh-ed25519", b"aes128-ctr", b"aes128-ctr", b"hmac-sha2-256")
        lists += (b"hmac-sha2-256", b"none", b"none", b"", b"")
        payload = b"\x14" + bytes(16) + b"".join(struct.pack("!I", len(x)) + x for x in lists) + bytes(5)
        padding = 8 - (5 + len(payload)) % 8 + 4
        return struct.pack("!IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)

    return stream(
        22,
        [
            ("c", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
            ("s", b"SSH-2.0-OpenSSH_9.6\r\n"),
            ("c", kexinit()),
            ("s", kexinit()),
        ],
    )


def dns_answer(name: str, address: bytes, code: int = 0) -> bytes:
    """Payload of a response with one A record."""
    labels = _labels(name)
    answers = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, len(address)) + address if address else b""
    head = struct.pack("!HHHHHH", 0x1234, 0x8180 | code, 1, 1 if answers else 0, 0, 0)
    return head + labels + struct.pack("!HH", 1, 1) + answers


def dns_question(name: str, kind: int = 1) -> bytes:
    """Payload of a query."""
    labels = _labels(name)
    return struct.pack("!HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!HH", kind, 1)


def _labels(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
