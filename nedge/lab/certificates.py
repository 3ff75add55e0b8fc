"""Certificates for the lab's TLS servers, made with the `openssl` command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nedge.lab.host import call

EXPIRED = ("20200101000000Z", "20210101000000Z")
VALID = ("20240101000000Z", "20440101000000Z")

# `openssl ca` is the one subcommand that takes both dates as they are, with every openssl since 1.0.
_CONFIG = """\
[ca]
default_ca = lab
[lab]
database = {directory}/index.txt
new_certs_dir = {directory}
rand_serial = yes
default_md = sha256
policy = anything
unique_subject = no
[anything]
commonName = supplied
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = {names}
"""


def make_certificates(directory: Path, names: Sequence[str]) -> None:
    """Make `ca.pem`, and `valid.pem` and `expired.pem` signed by it, each with its `.key` beside it.

    `names` are DNS names, wildcards included. Keys are on P-256: handshakes must be cheap.
    """
    directory.mkdir(exist_ok=True)
    (directory / "index.txt").touch()
    config = directory / "openssl.cnf"
    config.write_text(_CONFIG.format(directory=directory, names=",".join(f"DNS:{name}" for name in names)))
    # The subject is kept short, for a name of 64 characters at most; the names are in the extension.
    _issue(directory, "ca", subject="nedge lab CA", extensions="authority", dates=VALID)
    _issue(directory, "valid", subject="nedge lab", extensions="leaf", dates=VALID)
    _issue(directory, "expired", subject="nedge lab, expired", extensions="leaf", dates=EXPIRED)


def _issue(directory: Path, name: str, *, subject: str, extensions: str, dates: tuple[str, str]) -> None:
    key, request, certificate = (str(directory / f"{name}{end}") for end in (".key", ".csr", ".pem"))
    call(
        [
            *("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-batch", "-subj", f"/CN={subject}", "-keyout", key, "-out", request),
        ]
    )
    options = {
        "-config": str(directory / "openssl.cnf"),
        "-keyfile": str(directory / "ca.key"),
        "-startdate": dates[0],
        "-enddate": dates[1],
        "-extensions": extensions,
        "-in": request,
        "-out": certificate,
    }
    signer = ["-selfsign"] if name == "ca" else ["-cert", str(directory / "ca.pem")]
    call(
        ["openssl", "ca", "-batch", "-notext", *signer, *(word for pair in options.items() for word in pair)]
    )
