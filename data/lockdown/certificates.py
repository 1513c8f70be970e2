"""Makes certificates for a day, each in two files: NAME.crt and, private, NAME.key."""

from collections import namedtuple
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

HERE = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
DAY = timedelta(days=1)

Certificate = namedtuple("Certificate", "crt key signs")


def certify(folder, name, signer=None):
    """Make a key and a certificate, and return its files, and what it signs with.

    Without a signer it signs itself, and is an authority.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer, signing_key = signer.signs if signer else (subject, key)
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)  # clocks differ
        .not_valid_after(now + DAY)
        .add_extension(HERE, critical=False)
        .add_extension(x509.BasicConstraints(signer is None, None), critical=True)
        .sign(signing_key, hashes.SHA256())
    )
    public, secret = folder / f"{name}.crt", folder / f"{name}.key"
    public.write_bytes(certificate.public_bytes(Encoding.PEM))
    secret.touch(mode=0o600)
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    secret.write_bytes(key.private_bytes(*form))
    return Certificate(str(public), str(secret), (subject, key))
