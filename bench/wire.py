"""A server and a client over loopback, each its own process on its own CPU: what the client says of itself, once."""
import contextlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import trustme

from bench import build, common

TIMEOUT_S = 60


class Wire:
    """Message files, certificates and the programs of bench/*.c in a temporary folder. Close it, or use `with`."""

    def __init__(self):
        self.server_cpu, self.client_cpu = reversed(common.two_cpus())
        self.server = build.program("server", "ssl", "crypto")
        self._exit = contextlib.ExitStack()
        self.folder = pathlib.Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="feedhandler-bench-")))
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.folder / "ca.pem")
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(self.folder / "server.pem")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._exit.close()

    def messages(self, name, messages):
        """Path of a file of these messages, for run()."""
        path = self.folder / name
        with open(path, "wb") as file:
            for message in messages:
                file.write(struct.pack("<I", len(message)) + message)
        return path

    @contextlib.contextmanager
    def serving(self, path, count, tls, *mode):
        """(process, url) of a server that sends count messages to its first client."""
        pem = str(self.folder / "server.pem") if tls else "-"
        process = subprocess.Popen([self.server, pem, pem, str(self.server_cpu), str(path), str(count), *map(str, mode or ("blast",))],
                                   stdout=subprocess.PIPE, text=True)
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError(f"bench/server.c did not start: {process.wait(5)}")
            yield process, f"ws{'s' if tls else ''}://{'localhost' if tls else '127.0.0.1'}:{port}/ws"
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def run(self, kind, path, count, tls, expected_bytes, *options):
        """CPU ns a message of one client; it must have received every message and byte."""
        with self.serving(path, count, tls) as (_, url):
            said = client(kind, url, self.client_cpu, self.folder / "ca.pem", *options)
        if (said["messages"], said["bytes"]) != (count, expected_bytes):
            raise RuntimeError(f"{kind} received {said['messages']} messages of {said['bytes']} bytes, sent were {count} of {expected_bytes}")
        said["cpu_ns_each"] = said["cpu_ns"] / count
        return said


def environment():
    return {**os.environ, "PYTHONPATH": str(build.ROOT)}


def client_command(kind, url, cpu, ca_file, *options):
    if kind == "c":
        return [build.program("receive_client", "ssl", "crypto"), url.rsplit(":", 1)[1].split("/")[0],
                "tls" if url.startswith("wss") else "plain", str(cpu)]
    return [sys.executable, "-m", "bench.client", kind, url, str(cpu), str(ca_file), *map(str, options)]


def client(kind, url, cpu, ca_file, *options):
    """What a client prints about itself when the server has closed."""
    done = subprocess.run(client_command(kind, url, cpu, ca_file, *options), capture_output=True, text=True, timeout=TIMEOUT_S, cwd=build.ROOT,
                          env=environment())
    if done.returncode:
        raise RuntimeError(f"{kind}: {done.stderr.strip()[-600:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
