"""What system tests work with: servers that count, clips, manifests, and what a build left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
import soundfile

from earwitness.engine.guardian import Guarded, start_guarded

RCLONE = shutil.which("rclone") or str(Path(sys.executable).parent / "rclone")
CREDENTIALS = ("key", "secret")
FRESH = ("--dir-cache-time", "100ms")
"""Folders are looked at anew: tests make buckets behind rclone's back."""
LONG_AGO_S = 1_600_000_000
"""A modification time that a stamp may be trusted at once with."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, server: Guarded, log_path: Path, limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if not server.alive():
            break
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own http address
                return
        except urllib.error.HTTPError:
            return  # it answers, if only to refuse
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer:\n{log_path.read_text()[-2000:]}")


class StandIn:
    """A stand-in engine in a process of its own, and what it says it was asked."""

    def __init__(self, log_path: Path, *flags: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        self._metrics_url = f"http://127.0.0.1:{port}/metrics"
        command = [sys.executable, "-m", "tests.support.standin", "--port", str(port), *flags]
        self._server = start_guarded(command, log_path=log_path)
        wait_for(f"http://127.0.0.1:{port}/health", self._server, log_path)

    def asked(self) -> int:
        """Requests it has received so far, by its own count."""
        with urllib.request.urlopen(self._metrics_url, timeout=10) as answer:  # noqa: S310 - our own http address
            lines = answer.read().decode().splitlines()
        counts = dict(line.rsplit(" ", 1) for line in lines)
        return int(counts["standin:requests_received_total"])

    def stop(self) -> None:
        self._server.stop()


@dataclass
class WebServer:
    """A web server on loopback that serves from memory, with ETags, and counts.

    Objects are known by the exact text of a request's target, as a signature over it would be.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Targets that redirect, and where to."""
    sent: dict[str, str] = field(default_factory=dict)
    """Headers of every answer."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Targets that were asked for, with the request's headers, their names in lower case."""
    statuses: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    downloads: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    """Targets that answer 503, and how many times more."""
    held: set[str] = field(default_factory=set)
    """Paths whose bytes come only once they are taken out of here."""

    def __enter__(self) -> Self:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.downloads[self._target()] += 1
                while self._target() in web.held:
                    time.sleep(0.1)
                self._reply()

            def do_HEAD(self) -> None:
                self._reply()

            def _target(self) -> str:
                # `self.path` has its leading slashes folded
                return self.requestline.split(" ")[1]

            def _reply(self) -> None:
                target = self._target()
                asked = {name.lower(): value for name, value in self.headers.items()}
                web.requests.append((target, asked))
                body = b"" if target in web.statuses else web.objects.get(target, b"")
                found = 200 if target in web.objects else 302 if target in web.places else 404
                found = 503 if web.busy[target] > 0 else found
                web.busy[target] -= 1
                self.send_response(web.statuses.get(target, found))
                if target in web.places:
                    self.send_header("Location", web.places[target])
                for name, value in web.sent.items():
                    self.send_header(name, value)
                version = web.versions.get(target) or hashlib.md5(body).hexdigest()  # noqa: S324 - an ETag, as S3 makes them
                self.send_header("ETag", f'"{version}"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, path: str, data: bytes) -> str:
        self.objects[path] = data
        return self.url + path


@dataclass
class S3Server:
    """rclone serving S3 out of a folder; its log says what was read."""

    folder: Path
    log_path: Path

    def start(self) -> Guarded:
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        keys = ",".join(CREDENTIALS)
        command = [RCLONE, "serve", "s3", "--addr", address, "--auth-key", keys, "-vv", *FRESH]
        server = start_guarded([*command, str(self.folder)], log_path=self.log_path)
        wait_for(self.url, server, self.log_path)
        return server

    @property
    def environment(self) -> dict[str, str]:
        """What every S3 library finds it by, with its credentials."""
        key, secret = CREDENTIALS
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
        }

    def downloads(self, bucket: str, prefix: str) -> int:
        """Objects under a prefix that were read so far."""
        line = f"GET OBJECT Bucket: {bucket} Object: {prefix}"
        return self.log_path.read_text().count(line)


def tone(frequency_hz: float, duration_s: float = 0.1, rate_hz: int = 16_000) -> Any:
    """A quiet sine; each frequency is another clip."""
    times = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


def write_clip(path: Path, samples: Any, rate_hz: int = 16_000, **form: Any) -> Path:
    """A clip old enough for its stamp to be trusted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        soundfile.write(file, samples, rate_hz, **{"format": "WAV", **form})
    os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    return path


def clip_bytes(folder: Path, frequency_hz: float) -> bytes:
    return write_clip(folder / "one.wav", tone(frequency_hz)).read_bytes()


def record(audio: Any, question: str = "What do you hear?", **others: Any) -> dict[str, Any]:
    clips = [audio] if isinstance(audio, str | Path) else audio
    turns = [{"from": "human", "value": question}]
    return {"audio": [str(clip) for clip in clips], "conversation": turns, **others}


def write_manifest(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(one, ensure_ascii=False).encode() for one in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@dataclass(frozen=True)
class Published:
    """What lies at an output, read without any code of ours."""

    output: Path

    @property
    def folder(self) -> Path:
        pointer = json.loads((self.output / "latest.json").read_text())
        return self.output / "builds" / pointer["build"]

    def answers(self) -> list[dict[str, Any]]:
        return self._rows("jsonl")

    def rejections(self) -> list[dict[str, Any]]:
        return self._rows("rejected")

    def by_id(self) -> dict[int, str]:
        return {row["id"]: row["answer"] for row in self.answers()}

    def _rows(self, part: str) -> list[dict[str, Any]]:
        files = sorted((self.folder / part).glob("*.jsonl"))
        lines = [line for file in files for line in file.read_bytes().split(b"\n") if line]
        return [json.loads(line) for line in lines]
