"""A small HTTP proxy before an S3 server: counts requests, and damages what passes as a test asks for."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

Wanted = Callable[[str, str], bool]
DENIED = b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><Message>The key does not exist</Message></Error>"
PIECE = 16384
CHECKSUM = "x-amz-checksum-"  # left out: not every storage has them, so that damage has to be found without


@dataclass
class Fault:
    """`kind`: error, denied, slow, truncated, flipped or stalled; of the next `times` requests that are `wanted`."""

    kind: str
    wanted: Wanted
    times: int = 1
    pause: float = 0.01  # seconds: between the pieces of a slow body


class Proxy:
    """`requests`: method and path of each, such as `GET /bucket/key`; `sent`: path and bytes of each body that went."""

    def __init__(self, port: int) -> None:
        self.requests: list[str] = []
        self.sent: list[tuple[str, int]] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.freed = threading.Event()  # what is stalled goes on
        proxy = self

        class Handler(_Handler):
            owner = proxy
            behind = port

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def inject(self, kind: str, wanted: Wanted, times: int = 1, pause: float = 0.01) -> None:
        with self._lock:
            self._faults.append(Fault(kind, wanted, times, pause))

    def reset(self) -> None:
        with self._lock:
            self._faults.clear()
            self.requests.clear()
            self.sent.clear()
        self.freed.set()
        self.freed = threading.Event()

    def met(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append(f"{method} {path}")
            faults = list(self._faults)
        for fault in faults:
            if fault.wanted(method, path):  # not under the lock: it may ask what there was, or read a store
                with self._lock:
                    fault.times -= 1
                    if fault.times >= 0:
                        return fault
        return None

    def gets(self, part: str = "") -> list[str]:
        """GET requests of objects whose path has `part`; listings are left out."""
        with self._lock:
            return [r for r in self.requests if r.startswith("GET") and part in r and "list-type" not in r]

    def nbytes(self, part: str = "") -> int:
        """Bytes of all bodies that were sent of objects whose path has `part`."""
        with self._lock:
            return sum(size for path, size in self.sent if part in path)

    def count(self, path: str, size: int) -> None:
        with self._lock:
            self.sent.append((path, size))

    def close(self) -> None:
        self.freed.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy
    behind: int

    def log_message(self, *_: object) -> None:
        pass

    def _pass(self) -> None:
        body = self._body()
        fault = self.owner.met(self.command, unquote(self.path))
        with suppress(OSError):  # whoever asked is gone
            if fault is not None and fault.kind in ("error", "denied"):
                self._answer(500, b"") if fault.kind == "error" else self._answer(403, DENIED)
            else:
                self._forward(body, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "content-length")}
        connection.request(self.command, self.path, body or None, {**headers, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if fault is not None and fault.kind == "stalled" and not data:  # then it is the answer itself that doesn't come
            self.owner.freed.wait(30)
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding") and not name.lower().startswith(CHECKSUM):
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            if self.command == "GET":
                self.owner.count(unquote(self.path), len(data))
            self._write(data, fault)

    def _write(self, data: bytes, fault: Fault | None) -> None:
        kind = "" if fault is None else fault.kind
        if kind == "flipped" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        if kind in ("truncated", "stalled"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if kind == "stalled":
                self.owner.freed.wait(30)
            self.close_connection = True
        elif fault is not None and kind == "slow":
            for start in range(0, len(data), PIECE):
                self.wfile.write(data[start : start + PIECE])
                self.owner.freed.wait(fault.pause)
        else:
            self.wfile.write(data)
