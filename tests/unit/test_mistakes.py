"""Mistakes of a person: each is answered by one line that names it and says what to do."""

from __future__ import annotations

import bz2
import datetime as dt
import gzip
import io
import ipaddress
import json
import lzma
import ssl
import tarfile
import threading
import wave
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cli.main import main
from earwitness.builds.prepare import resolve_model, resolve_settings
from earwitness.errors import EarwitnessError
from earwitness.manifest.read import open_manifest
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORD = {"audio": ["a.wav"], "conversation": [{"from": "human", "value": "What?"}]}
LINE = json.dumps(RECORD).encode() + b"\n"
TABLE = pa.table({"audio": [["a.wav"]] * 3})
CSV = b"audio,question\na.wav,What?\nb.wav,Why?\n"


class Mistake(NamedTuple):
    """A command, and what its one line of error says.

    Attributes:
        typed: The command's words, in one text.
        says: Parts of the line: what is wrong, and what to do.
        status: The exit status.
    """

    typed: str
    says: tuple[str, ...]
    status: int = 1


def usage(typed: str, *says: str) -> Mistake:
    return Mistake(typed, says, 2)


def wrong(typed: str, *says: str) -> Mistake:
    return Mistake(typed, says)


BUILD = "build m.jsonl out --model model"

COMMANDS = [
    usage("bild m.jsonl out", "there is no command 'bild'", "did you mean build?"),
    usage("statsu out", "there is no command 'statsu'", "did you mean status?"),
    usage("publish out", "there is no command 'publish'", "the commands are init, check, build"),
    usage("--verison", "there is no option --verison", "did you mean --version?"),
    usage(f"{BUILD} --max-token 3", "no option --max-token", "did you mean --max-tokens?"),
    usage(f"{BUILD} --enforce-eager", "no option --enforce-eager", "vllm serve go after --"),
    usage("check m.jsonl --modle x", "there is no option --modle"),
    usage(f"{BUILD} --max-tokens many", "--max-tokens", "a whole number, not 'many'"),
    usage(f"{BUILD} --max-tokens 0", "--max-tokens", "at least 1, not 0"),
    usage(f"{BUILD} --max-tokens", "--max-tokens needs a value"),
    usage(f"{BUILD} --seed none", "--seed", "a whole number, not 'none'"),
    usage(f"{BUILD} --temperature 9", "--temperature", "at most 2, not 9.0"),
    usage(f"{BUILD} --max-rejected 50", "--max-rejected", "at most 1, not 50.0"),
    usage(f"{BUILD} --too-long shorten", "--too-long", "'reject', 'cut', not 'shorten'"),
    usage(f"{BUILD} --format csv", "--format", "'parquet' or 'jsonl', not 'csv'"),
    usage(f"{BUILD} --trusted=yes", "--trusted takes no value"),
    usage(f"{BUILD} --new --build b", "--new and --build cannot be used together"),
    usage("build m.jsonl", "OUTPUT is missing"),
    usage("build m.jsonl out more", "more arguments than the command takes: more"),
    usage("gc --keep 1", "OUTPUT is missing", "earwitness gc --help"),
    usage("gc out --keep 0", "--keep", "at least 1, not '0'"),
    usage("show out first", "ROW", "a whole number, not 'first'"),
    usage("worker --limit 1", "--pool is missing"),
    usage("worker --pool gpu --dtype float32", "engine options need --model", "--engine"),
    usage("init m.jsonl", "m.jsonl is a file", "name a folder"),
    usage("init taken", "taken already has earwitness.yaml", "name a new or empty folder"),
    wrong("build m.jsonl out", "no model is given: add --model"),
    wrong(
        "build m.jsonl out --model ./modle",
        "./modle: there is no such folder",
        "did you mean model?",
    ),
    wrong("build m.jsonl out --model clips", "clips is not a model", "config.json"),
    wrong("build m.jsonl out --model a/b/c", "neither a local folder nor the id of a model"),
    wrong(
        "build m.jsonl out --model org/none",
        "org/none",
        "neither in the cache",
        "nor a local folder",
    ),
    wrong(f"{BUILD} --build a/b", "'a/b' cannot be a build's id"),
    wrong(f"{BUILD} --question transcibe", "--question", "did you mean transcribe?"),
    wrong(f"{BUILD} --question captoin", "--question", "did you mean caption?"),
    wrong(f"{BUILD} --question Caption", "--question", "did you mean caption?"),
    wrong(f"{BUILD} --question question.txt", "name of a file", "write @question.txt"),
    wrong(f"{BUILD} --question @questoin.txt", "no file at", "did you mean question.txt?"),
    wrong(f"{BUILD} --question @clips", "clips is a folder, not a file"),
    wrong(f"{BUILD} --question @wave.jsonl", "not UTF-8 text"),
    wrong(f"{BUILD} --question @nothing.txt", "is empty", "give a text"),
    wrong("status out", "there is no build at"),
    wrong("show m.jsonl", "m.jsonl", "is a file"),
    wrong("retry out", "there is no unfinished build at"),
]

SETTINGS_FILES = [
    usage("check --config mispelt.yaml", "max_token in mispelt.yaml", "did you mean max_tokens?"),
    usage("check --config dashed.yaml", "max-tokens in dashed.yaml", "did you mean max_tokens"),
    usage(
        "check --config misplaced.yaml", "temperature", "did you mean temperature below sampling"
    ),
    usage("check --config section.yaml", "engine in section.yaml", "have to stand below engine:"),
    usage("check --config tab.yaml", "tab.yaml, line 2", "a tab stands where YAML wants spaces"),
    usage("check --config colon.yaml", "colon.yaml, line 1", "put the value in quotes"),
    usage("check --config quote.yaml", "quote.yaml", "a quote is not closed"),
    usage("check --config list.yaml", "list.yaml", "names with values, such as max_tokens: 256"),
    usage("check --config wave.jsonl", "--config wave.jsonl", "not UTF-8 text"),
    usage("check --config earwitnes.yaml", "no file at", "did you mean earwitness.yaml?"),
    usage("check --config clips", "clips is a folder, not a file"),
    usage("check --config m.jsonl/x", "m.jsonl/x cannot exist", "a file, not a folder"),
]

ADDRESSES = [
    wrong("build m.jsonl s3:/bucket/out --model model", "did you mean s3://bucket/out?"),
    wrong("build m.jsonl s3//bucket/out --model model", "did you mean s3://bucket/out?"),
    wrong("build m.jsonl file:/data/out --model model", "did you mean file:///data/out?"),
    wrong("build m.jsonl file://data/out --model model", "three slashes", "file:///data/out"),
    wrong("build m.jsonl ~/out --model model", "~ is expanded only by a shell", "write /"),
    wrong("build m.jsonl s4://b/out --model model", "s4:// cannot be opened", "did you mean s3"),
    wrong("build m.jsonl foo://b/out --model model", "foo:// addresses cannot be opened"),
    wrong("build m.jsonl s3:///out --model model", "has no bucket", "s3://BUCKET/FOLDER"),
    wrong(
        "build m.jsonl m.jsonl --model model",
        "m.jsonl is a file, and the output has to be a folder",
    ),
    wrong("build m.jsonl m.jsonl/out --model model", "m.jsonl is a file"),
    wrong("check https:/host/m.jsonl", "did you mean https://host/m.jsonl?"),
    wrong("check ~/m.jsonl", "manifest '~/m.jsonl'", "~ is expanded only by a shell"),
    wrong("check m.jsonl --audio-root s3:/b", "audio_root", "did you mean s3://b?"),
    wrong("status s3:/bucket/out", "did you mean s3://bucket/out?"),
    wrong("gc ~/out", "~ is expanded only by a shell"),
    wrong("retry file:/data/out", "did you mean file:///data/out?"),
]

ENGINES = [
    wrong("build m.jsonl out --engine gpu1:8000", "http://host:8000/v1", "mean http://gpu1:8000?"),
    wrong("build m.jsonl out --engine ftp://gpu1/v1", "http://host:8000/v1, not 'ftp://gpu1/v1'"),
    wrong("build m.jsonl out --engine http://gpu1:80o0/v1", "not 'http://gpu1:80o0/v1'"),
    wrong(
        "build m.jsonl out --engine http://gpu1:8000/v1/chat/completions",
        "is the address of one endpoint",
        "write http://gpu1:8000/v1",
    ),
    wrong("build m.jsonl out --engine http://gpu1/v1/models", "write http://gpu1/v1"),
    wrong(
        "build m.jsonl out --engine {http}/api",
        "no OpenAI-compatible API",
        "did you mean {http}/v1?",
    ),
    wrong("build m.jsonl out --engine {http}/page", "no OpenAI-compatible API at {http}/page"),
    wrong("build m.jsonl out --engine {https-on-http}/v1", "does not use https", "{http}/v1"),
    wrong("build m.jsonl out --engine {http-on-https}/v1", "answers only with https", "{https}/v1"),
    wrong("build m.jsonl out --engine {https}/v1", "certificate", "SSL_CERT_FILE"),
    wrong("build m.jsonl out --engine {http}/moved", "redirects to", "elsewhere"),
    wrong("build m.jsonl out --engine {http}/locked", "refused the API key", "VLLM_API_KEY"),
    wrong("build m.jsonl out --engine {http} --model other", "serves small, not other", "--model"),
]

FILES = [
    wrong("build wave.jsonl out --model model", "is a WAV file", '{"audio": ['),
    wrong("check m.jsonl.bz2", "a bzip2 file", "unpack it first (bunzip2)"),
    wrong("check m.jsonl.xz", "an xz file", "unpack it first (unxz)"),
    wrong("check m.zip", "a ZIP archive", "unpack it first (unzip)"),
    wrong("check m.tar", "a tar archive", "unpack it first"),
    wrong("check m.tar.gz", "a gzip file with a tar archive inside", "unpack it first"),
    wrong("check wave.gz", "a gzip file with a WAV file inside"),
    wrong("check table.csv.gz", "a gzip file with a table of CSV", "convert it"),
    wrong("check table.csv", "a table of CSV", "audio,question", "convert it", "one JSON object"),
    wrong("check table.tsv", "a table of TSV", "convert it", "one JSON object"),
    wrong("check array.json", "one JSON array", "jq -c '.[]'"),
    wrong("check pretty-array.json", "one JSON array", "jq -c '.[]'"),
    wrong("check pretty-object.json", "JSON spread over several lines", "jq -c ."),
    wrong("check pretty-objects.json", "JSON spread over several lines", "jq -c ."),
    wrong("check dataset.json", "the records in its field 'data'", """jq -c '.["data"][]'"""),
    wrong("check parts", "a folder of 2 Parquet files", "name one of them"),
    wrong("check clips", "a folder with 1 audio file;", "write a manifest that lists"),
    wrong("check empty-folder", "it is a folder", "name the file inside"),
    wrong("check m.arrow", "an Arrow file", "convert it to Parquet"),
    wrong("check stream.arrow", "an Arrow stream", "convert it to Parquet"),
    wrong("check m.feather", "an Arrow file", "convert it to Parquet"),
    wrong("check cut.parquet", "not a whole Parquet file"),
    wrong("check page.jsonl", "an HTML page", "an error or login page"),
    wrong("check error.jsonl", "an XML document", "an error or login page"),
    wrong("check pointer.jsonl", "a Git LFS pointer", "git lfs pull"),
    wrong("check utf16.jsonl", "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    wrong("check utf16-bare.jsonl", "UTF-16 text", "it has to be UTF-8"),
    wrong("check utf32.jsonl", "UTF-32 text", "it has to be UTF-8"),
    wrong("check empty.jsonl", "holds no records"),
    wrong("check blank.jsonl", "holds no records"),
    wrong("check list.txt", "a list of file names", "one JSON object a line"),
    wrong("check notes.txt", "text without JSON", "one JSON object a line"),
    wrong("check sheet.xlsx", "an Excel or other Office document", "export it"),
    wrong("check commas.jsonl", "commas between the lines", "sed 's/,$//'"),
    wrong("check python.jsonl", "Python's notation of dictionaries", "json.dumps"),
    wrong("check returns.jsonl", "end with carriage returns alone", "convert it"),
    wrong("check m.pls", "text without JSON", "it begins '[playlist]'"),
    wrong("check m.rtf", "a document of rich text"),
    wrong("check m.parquet.gz", "a gzip file with a Parquet file inside", "unpack it"),
    wrong("check m.jsonl.lz4", "an LZ4 file", "unpack it first (unlz4)"),
    wrong("check m.db", "an SQLite database", "convert it"),
    wrong("check m.pickle", "a Python pickle", "convert it"),
    wrong("check cut.jsonl.gz", "cut short"),
    wrong("check {http}/none.jsonl", "there is no manifest at", "the server answered 404"),
    wrong("check {http}/locked/m.jsonl", "the server answered 401", "a signed URL"),
    wrong("check {http}/page/m.jsonl", "an HTML page", "an error or login page"),
    wrong("check m.jsno", "there is no manifest at", "did you mean", "m.jsonl?"),
    wrong("check m.jsonl/inside", "m.jsonl/inside", "a file, not a folder"),
    wrong(
        "check answers.jsonl", "a field 'answer' already", "--answer-column", "line 3 of the file"
    ),
]


def packed(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    if name.endswith((".zip", ".xlsx")):
        with zipfile.ZipFile(out, "w") as file:
            file.writestr("[Content_Types].xml" if name.endswith(".xlsx") else "m.jsonl", data)
    else:
        with tarfile.open(fileobj=out, mode="w") as tar:
            entry = tarfile.TarInfo("m.jsonl")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def wav() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(3200))
    return out.getvalue()


def arrow(*, stream: bool) -> bytes:
    out = pa.BufferOutputStream()
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(out, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return out.getvalue().to_pybytes()


def parquet() -> bytes:
    out = pa.BufferOutputStream()
    pyarrow.parquet.write_table(TABLE, out)
    return out.getvalue().to_pybytes()


def feather() -> bytes:
    out = pa.BufferOutputStream()
    pyarrow.feather.write_feather(TABLE, out)
    return out.getvalue().to_pybytes()


def contents() -> dict[str, bytes]:
    """What lies in the folder that the commands are typed in."""
    text = LINE.decode()
    pretty = json.dumps(RECORD, indent=2)
    return {
        "m.jsonl": LINE,
        "model/config.json": b"{}",
        "clips/a.wav": wav(),
        "question.txt": b"What do you hear?",
        "nothing.txt": b"\n",
        "earwitness.yaml": b"manifest: m.jsonl\n",
        "taken/earwitness.yaml": b"",
        "mispelt.yaml": b"manifest: m.jsonl\nmax_token: 3\n",
        "dashed.yaml": b"manifest: m.jsonl\nmax-tokens: 3\n",
        "misplaced.yaml": b"manifest: m.jsonl\ntemperature: 1\n",
        "section.yaml": b"manifest: m.jsonl\nengine: http://gpu1:8000/v1\n",
        "tab.yaml": b"engine:\n\turl: []\n",
        "colon.yaml": b"question: Say: what is it?\n",
        "quote.yaml": b'question: "What is it?\nmax_tokens: 3\n',
        "list.yaml": b"- manifest: m.jsonl\n",
        "wave.jsonl": wav(),
        "wave.gz": gzip.compress(wav()),
        "m.jsonl.bz2": bz2.compress(LINE),
        "m.jsonl.xz": lzma.compress(LINE),
        "m.zip": packed("m.zip", LINE),
        "sheet.xlsx": packed("sheet.xlsx", b"<Types/>"),
        "m.tar": packed("m.tar", LINE),
        "m.tar.gz": gzip.compress(packed("m.tar", LINE)),
        "table.csv": CSV,
        "table.csv.gz": gzip.compress(CSV),
        "table.tsv": CSV.replace(b",", b"\t"),
        "array.json": json.dumps([RECORD, RECORD]).encode(),
        "pretty-array.json": json.dumps([RECORD, RECORD], indent=2).encode(),
        "pretty-object.json": pretty.encode(),
        "pretty-objects.json": f"{pretty}\n{pretty}\n".encode(),
        "dataset.json": json.dumps({"version": 1, "data": [RECORD]}, indent=1).encode(),
        "parts/0.parquet": parquet(),
        "parts/1.parquet": parquet(),
        "empty-folder/.keep": b"",
        "m.arrow": arrow(stream=False),
        "stream.arrow": arrow(stream=True),
        "m.feather": feather(),
        "cut.parquet": parquet()[:-9],
        "page.jsonl": b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
        "error.jsonl": b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
        "pointer.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n",
        "utf16.jsonl": text.encode("utf-16"),
        "utf16-bare.jsonl": text.encode("utf-16-le"),
        "utf32.jsonl": text.encode("utf-32"),
        "empty.jsonl": b"",
        "blank.jsonl": b"\n \n",
        "list.txt": b"clips/a.wav\nclips/b.wav\n",
        "notes.txt": b"These are my notes.\nThey hold no records.\n",
        "commas.jsonl": b",\n".join([LINE.rstrip()] * 3) + b",\n",
        "python.jsonl": f"{RECORD}\n{RECORD}\n".encode(),
        "returns.jsonl": (LINE * 3).replace(b"\n", b"\r"),
        "m.pls": b"[playlist]\nFile1=a.wav\n",
        "m.rtf": b"{\\rtf1\\ansi Hello}\n",
        "m.parquet.gz": gzip.compress(parquet()),
        "m.jsonl.lz4": b"\x04\x22\x4d\x18" + bytes(range(64)),
        "m.db": b"SQLite format 3\0" + bytes(100),
        "m.pickle": b"\x80\x04\x95\x10\x00\x00\x00",
        "cut.jsonl.gz": gzip.compress(LINE * 99)[:-12],
        "answers.jsonl": LINE + b"\n" + json.dumps({**RECORD, "answer": "a"}).encode(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mistakes")
    for name, data in contents().items():
        path = made / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return made


class Page(BaseHTTPRequestHandler):
    """A web server that is an engine below /v1 and something else below other paths."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._reply(200, b'{"data": [{"id": "small"}]}')
        elif self.path.startswith("/page/"):
            self._reply(200, b"<html>Welcome</html>")
        elif self.path.startswith("/moved/"):
            self._reply(301, b"", ("Location", "http://elsewhere/v1/models"))
        elif self.path == "/health":
            self._reply(200, b"")
        else:
            self._reply(401 if self.path.startswith("/locked/") else 404, b"{}")

    def _reply(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that speaks another protocol is what is tested."""


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[str]:
    server = Server(("127.0.0.1", 0), Page)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def certificate(where: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(tz=dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = where / "server.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    context = certificate(tmp_path_factory.mktemp("certificate"))
    with serving() as plain, serving(context) as secure:
        yield {
            "{http}": f"http://{plain}",
            "{https}": f"https://{secure}",
            "{https-on-http}": f"https://{plain}",
            "{http-on-https}": f"http://{secure}",
        }


def filled(text: str, servers: dict[str, str]) -> str:
    for name, url in servers.items():
        text = text.replace(name, url)
    return text


@pytest.mark.parametrize(
    "mistake",
    [*COMMANDS, *SETTINGS_FILES, *ADDRESSES, *ENGINES, *FILES],
    ids=lambda mistake: mistake.typed.replace(" ", "_"),
)
def test_a_mistake_is_one_line_that_names_it_and_the_remedy(
    mistake: Mistake,
    folder: Path,
    servers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(filled(mistake.typed, servers).split())
    out, err = capsys.readouterr()
    errors = [line for line in (out + err).splitlines() if "rror" in line]
    assert len(errors) == 1, out + err
    assert errors[0].startswith("error: ")
    assert [part for part in mistake.says if filled(part, servers) not in errors[0]] == []
    assert "Traceback" not in out + err
    assert ended.value.code == mistake.status
    assert sorted(folder.rglob("*")) == before


def test_settings_that_a_given_engine_never_learns_of_are_named(
    folder: Path,
    servers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(folder)
    typed = "build m.jsonl out --dry-run --engine {http} --max-num-seqs 9 --dtype float32"
    with pytest.raises(SystemExit) as ended:
        main([*filled(typed, servers).split(), "--", "--enforce-eager"])
    err = capsys.readouterr().err
    assert ended.value.code == 0
    assert err == (
        "note: --engine names an engine that runs already; ignored: --dtype, flags after --\n"
    )


FORMS = [
    ({"manifest": "s3:/b/m.jsonl"}, ("manifest", "did you mean s3://b/m.jsonl?")),
    ({"manifest": ""}, ("manifest", "is empty: give a path or a URL")),
    ({"manifest": "  "}, ("manifest", "is empty: give a path or a URL")),
    ({"manifest": " s3://b/m.jsonl"}, ("manifest", "a space before or after")),
    ({"manifest": "table.csv"}, ("a table of CSV", "convert it")),
    ({"manifest": "m.jsno"}, ("there is no manifest at", "did you mean")),
    ({"output": "~/out"}, ("output", "~ is expanded only by a shell")),
    ({"output": "C:\\data\\out"}, ("output", "is a Windows path")),
    ({"output": "m.jsonl"}, ("output", "is a file")),
    ({"output": "s3://key:secret@bucket/out"}, ("output", "before the @")),
    ({"model": "./modle"}, ("./modle: there is no such folder", "did you mean model?")),
    ({"model": None}, ("no model is given: add --model",)),
    ({"question": "transcibe"}, ("did you mean transcribe?",)),
    ({"question": "@nowhere.txt"}, ("no file at nowhere.txt",)),
    ({"engine": {"url": ["gpu1:8000"]}}, ("http://host:8000/v1",)),
    ({"engine": {"url": ["http://gpu1/v1/chat/completions"]}}, ("write http://gpu1/v1",)),
]


def submit(given: dict[str, Any]) -> None:
    """What a run of the form's deployment does before it plans."""
    settings = resolve_settings(BuildSettings(**given))
    resolve_model(settings)
    open_manifest(settings.manifest, max_line_bytes=1024).close()


@pytest.mark.parametrize(("form", "says"), FORMS, ids=lambda value: str(value)[:50])
def test_a_mistake_in_the_form_is_one_sentence_that_names_it_and_the_remedy(
    form: dict[str, Any], says: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    given = {"manifest": "m.jsonl", "output": "out", "model": "model", **form}
    with pytest.raises(EarwitnessError) as caught:
        submit(given)
    assert [part for part in says if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()
