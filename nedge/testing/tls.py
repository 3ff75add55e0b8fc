"""TLS and QUIC as OpenSSL and aioquic speak them: `pip install 'nedge[testing]'` brings what this needs."""

from __future__ import annotations

import datetime as dt
import functools
import importlib
import random
import ssl
import tempfile
import warnings
from pathlib import Path
from typing import Any

from nedge.testing.conversations import Tcp, Udp
from nedge.testing.packets import CLIENT, SERVER, T0, Packet

Certificate = tuple[bytes, bytes]
"""A certificate chain and its private key, in PEM."""
ISSUER = "Example Issuing CA"


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is needed here: pip install 'nedge[testing]'") from None


@functools.cache
def certificate(
    names: tuple[str, ...] = ("cert.example.org",),
    not_before: int = T0 - 86400,
    not_after: int = T0 + 86400,
    *,
    issuer: str = ISSUER,
    subject: str | None = None,
    rsa: bool = False,
) -> Certificate:
    """A certificate for these DNS names, valid between two epoch seconds.

    `issuer`: the common name of who signed it; "" for a self-signed one. `subject`: its own common name, the
    first of the names unless given. `rsa`: an RSA key, instead of an elliptic curve's.

    The same arguments give the same bytes, with keys that anybody can know: nDPI searches certificates for
    patterns, which random ones can happen to have.
    """
    x509 = _needed("cryptography.x509")
    hashes = _needed("cryptography.hazmat.primitives.hashes")
    serialization = _needed("cryptography.hazmat.primitives.serialization")
    key = _rsa_key() if rsa else _ec_key(0x5EED)
    own = names[0] if subject is None else subject
    built = (
        x509.CertificateBuilder()
        .subject_name(_common_name(own))
        .issuer_name(_common_name(issuer or own))
        .public_key(key.public_key())
        .serial_number(1000)
        .not_valid_before(dt.datetime.fromtimestamp(not_before, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(not_after, dt.UTC))
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        built = built.add_extension(alternatives, critical=False)
    signer = _ec_key(0xCA) if issuer else key
    signed = built.sign(signer, hashes.SHA256(), ecdsa_deterministic=None if rsa and not issuer else True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return signed.public_bytes(serialization.Encoding.PEM), private


def _ec_key(secret: int) -> Any:
    curves = _needed("cryptography.hazmat.primitives.asymmetric.ec")
    return curves.derive_private_key(secret, curves.SECP256R1())


def _rsa_key() -> Any:
    """An RSA key of 1024 bits, from the first primes that a certain generator of numbers comes upon."""
    rsa = _needed("cryptography.hazmat.primitives.asymmetric.rsa")
    numbers = random.Random(0x5EED)  # noqa: S311 (no secret)
    p, q = _prime(numbers), _prime(numbers)
    d = pow(65537, -1, (p - 1) * (q - 1))
    crt = (rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q))
    return rsa.RSAPrivateNumbers(p, q, d, *crt, rsa.RSAPublicNumbers(65537, p * q)).private_key()


def _prime(numbers: random.Random) -> int:
    """A prime of 512 bits, as far as Fermat's test to a few bases can tell."""
    while True:
        number = numbers.getrandbits(512) | 3 << 510 | 1
        if all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7)):
            return number


def _common_name(text: str) -> Any:
    x509, oid = _needed("cryptography.x509"), _needed("cryptography.x509.oid")
    return x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, text)])


def _client_context(lowest: str, highest: str, ciphers: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _limit(context, lowest, highest, ciphers)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def _limit(context: ssl.SSLContext, lowest: str, highest: str, ciphers: str) -> None:
    """Allow these versions ("1.0" to "1.3") and OpenSSL's names of ciphers, old ones too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        context.minimum_version = _version(lowest)
        context.maximum_version = _version(highest)


def _version(text: str) -> ssl.TLSVersion:
    names = {"1.0": "TLSv1", "1.1": "TLSv1_1", "1.2": "TLSv1_2", "1.3": "TLSv1_3"}
    return ssl.TLSVersion[names[text]]


def client_hello(name: str | None, lowest: str = "1.2", highest: str = "1.3") -> bytes:
    """OpenSSL's ClientHello, as one TLS record; with no server name if there is none."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = _client_context(lowest, highest, "ALL").wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake needs an answer")


def tls_turns(
    version: str = "1.2",
    name: str | None = "cert.example.org",
    *,
    offered: str | None = None,
    cert: Certificate | None = None,
    ciphers: str = "ALL",
) -> list[tuple[str, bytes]]:
    """A whole handshake of OpenSSL with itself, as turns for `Tcp.turns`. Arguments are those of `tls`."""
    chain, key = cert or certificate()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _limit(server_context, version, version, ciphers)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "cert.pem").write_bytes(chain)
        Path(directory, "key.pem").write_bytes(key)
        server_context.load_cert_chain(Path(directory, "cert.pem"), Path(directory, "key.pem"))
    server_context.set_alpn_protocols(["h2"])
    client_context = _client_context(version, offered or version, ciphers)

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    turns: list[tuple[str, bytes]] = []
    done: set[str] = set()
    while len(done) < 2:
        for side, endpoint, outgoing in (("c", client, to_server), ("s", server, to_client)):
            if side not in done:
                try:
                    endpoint.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    pass
            if data := outgoing.read():
                turns.append((side, data))
                outgoing.write(data)  # for the other side to read
    return turns


def tls(
    version: str = "1.2",
    name: str | None = "cert.example.org",
    *,
    offered: str | None = None,
    cert: Certificate | None = None,
    ciphers: str = "ALL",
    client: str = CLIENT,
    server: str = SERVER,
    dport: int = 443,
    sport: int = 40000,
    start: float = T0,
) -> Tcp:
    """A connection with a whole TLS handshake.

    `version`: "1.0" to "1.3". `name`: the SNI; None for none. `offered`: the client's highest version, if it
    is not that one. `cert`: of the server. `ciphers`: that both sides know, by OpenSSL's names.
    """
    turns = tls_turns(version, name, offered=offered, cert=cert, ciphers=ciphers)
    return Tcp(client, server, sport, dport, start).handshake().turns(turns)


def quic_initial(name: str, client: str = CLIENT, server: str = SERVER, start: float = T0) -> list[Packet]:
    """The first datagrams of a QUIC v1 client."""
    configuration = _needed("aioquic.quic.configuration").QuicConfiguration(
        is_client=True, alpn_protocols=["h3"], server_name=name
    )
    connection = _needed("aioquic.quic.connection").QuicConnection(configuration=configuration)
    connection.connect((server, 443), now=0.0)
    talk = Udp(client, server, dport=443, start=start)
    for data, _ in connection.datagrams_to_send(now=0.0):
        talk.client(data)
    return talk.packets
