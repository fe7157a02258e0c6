"""The hand-over channel: TLS 1.3 between two agents, each of which shows that it holds the cluster key.

The certificate is not a file: its Ed25519 key is derived from the cluster key (HKDF, purpose `hand-over`), so it is
the same on every host, and rotates with the key. Each side presents the one of the key that it sends with, and takes
that of any key in its ring, byte for byte. A name, an address or an authority says nothing. Validity is from 2000 to
9999: no clock need be right. Crypto is the library's (`cryptography`, OpenSSL); nothing of it is made here.
"""

import datetime
import os
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from divhook.core.keys import PURPOSE_HANDOVER, Key, KeyRing

_FROM = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_UNTIL = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


class StrangerError(Exception):
    """The other side does not hold the cluster key."""


def certificate(key: Key, cluster: str) -> tuple[bytes, bytes]:
    """(certificate, private key) in PEM. The same bytes on every host: Ed25519 signs without chance (RFC 8032)."""
    private = Ed25519PrivateKey.from_private_bytes(key.derive(PURPOSE_HANDOVER, cluster))
    # A name for each key: OpenSSL looks for an issuer by its name.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"divhook hand-over {key.fingerprint()}")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(key.key_id + 1)
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, None)
    )
    return made.public_bytes(serialization.Encoding.PEM), private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Pinned:
    """What both sides of a channel use."""

    def __init__(self, keys: KeyRing, cluster: str) -> None:
        self.server: ssl.SSLContext
        self.client: ssl.SSLContext
        self._accepted: set[bytes]
        self.replace(keys, cluster)

    def replace(self, keys: KeyRing, cluster: str) -> None:
        """Use these keys for channels that are opened from now on; a server that listens already keeps its own."""
        made = {key.key_id: certificate(key, cluster) for key in keys.keys}
        self._accepted = {ssl.PEM_cert_to_DER_cert(pem.decode()) for pem, _ in made.values()}
        authorities = b"".join(pem for pem, _ in made.values()).decode()
        pem, private = made[keys.sending.key_id]
        self.server = self._context(ssl.PROTOCOL_TLS_SERVER, pem, private, authorities)
        self.client = self._context(ssl.PROTOCOL_TLS_CLIENT, pem, private, authorities)

    @staticmethod
    def _context(protocol: int, pem: bytes, private: bytes, authorities: str) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authorities)
        descriptor, path = tempfile.mkstemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(private + pem)
            context.load_cert_chain(path)  # OpenSSL reads from files only
        finally:
            Path(path).unlink()
        return context

    def check(self, peer: object) -> None:
        """peer: an ssl_object. Raises StrangerError where its certificate is none of ours."""
        shown = peer.getpeercert(binary_form=True) if isinstance(peer, ssl.SSLObject) else None
        if shown not in self._accepted:
            raise StrangerError("the other side shows no certificate of this cluster")
