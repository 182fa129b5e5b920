"""A certificate authority of our own and a server certificate for loopback, made anew at every start.

Only clients that are given `ca.pem` trust the simulated venue; verification stays on everywhere.
"""
import pathlib
import ssl

import trustme

HOSTS = ("127.0.0.1", "localhost")


def write(directory):
    """Make the authority and the server's certificate. Returns (server SSL context, path of ca.pem)."""
    authority = trustme.CA()
    certificate = authority.issue_cert(*HOSTS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate.configure_cert(context)
    ca_file = pathlib.Path(directory) / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return context, str(ca_file)
