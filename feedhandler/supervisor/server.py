"""The control socket: `supervisor.sock`. Who may connect is decided by the kernel's word on the peer, never by what it says.

The owner and root may do everything; others whom the directory's group lets in may look.
"""
import asyncio
import inspect
import os
import socket
import struct

from feedhandler import control

CLIENT_MAX = 64
REQUEST_SIZE_MAX = 1 << 16
IDLE_TIMEOUT_S = 30.0
LOOK = ("status", "subs", "conns", "capacity", "plan", "moves")


class Server:
    """verbs: {name: function(arguments) → result, or a coroutine of it}; a ValueError of one is the answer's error."""

    def __init__(self, path, verbs, log):
        self.path, self.verbs, self.log = path, verbs, log
        self.server, self.clients = None, 0

    async def start(self):
        if os.path.lexists(self.path):
            os.unlink(self.path)  # of a dead supervisor: we hold its lock
        self.server = await asyncio.start_unix_server(self._client, self.path)
        os.chmod(self.path, 0o660)

    async def close(self):
        if self.server is not None:
            self.server.close()

    async def _client(self, reader, writer):
        self.clients += 1
        try:
            if self.clients <= CLIENT_MAX:
                await self._serve(reader, writer)
        except (ConnectionError, asyncio.TimeoutError):
            pass  # the client left or idles: nothing of ours is lost
        finally:
            self.clients -= 1
            writer.close()

    async def _serve(self, reader, writer):
        _, uid, _ = struct.unpack("3i", writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        decoder, size = control.Decoder(control.Request), 0
        while data := await asyncio.wait_for(reader.read(REQUEST_SIZE_MAX), IDLE_TIMEOUT_S):
            size += len(data)
            try:
                requests = decoder.feed(data)
            except ValueError as error:
                writer.write(control.encode(control.Answer(False, None, f"this is no request: {error}")))
                return
            if not requests and size > REQUEST_SIZE_MAX:
                writer.write(control.encode(control.Answer(False, None, f"a request is larger than {REQUEST_SIZE_MAX} bytes")))
                return
            for request in requests:
                size = 0
                writer.write(control.encode(await self._answer(request, uid)))
                await writer.drain()

    async def _answer(self, request, uid):
        verb = self.verbs.get(request.verb)
        if verb is None:
            return control.Answer(False, None, f"verb {request.verb!r} is not known; there are {', '.join(self.verbs)}")
        if request.verb not in LOOK and uid not in (0, os.geteuid()):
            self.log("request_refused", verb=request.verb, uid=uid)
            return control.Answer(False, None, f"user id {uid} may look ({', '.join(LOOK)}) but not {request.verb}; ask the owner of the instance")
        try:
            result = verb(request.arguments)
            return control.Answer(True, await result if inspect.isawaitable(result) else result)
        except ValueError as error:
            return control.Answer(False, None, str(error))
