"""Downloads from a server on this machine that breaks off, stalls, and serves wrong, damaged and hostile files."""

import hashlib
import io
import json
import re
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import REPOSITORY
from typer.testing import CliRunner

from reproduction import alone
from reproduction.cli import app
from reproduction.datasets import fetch
from reproduction.datasets.camus import open_camus


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> bytes); `faults` (path -> a list) are used up, one a request, before it serves well."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.kinds: dict[str, str] = {}
        self.ranges, self.lengths = True, True
        self.asked: list[tuple[str, str | None]] = []  # path and Range of each request
        self.over = threading.Event()
        self.outlived = 0  # stalls that nobody gave up waiting for


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append((self.path, asked))
        if self.path not in server.files:
            self.send_error(404)
            return
        body, fault = server.files[self.path], (server.faults.get(self.path) or [None]).pop(0)
        first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if first and first >= len(body):
            self.send_error(416)
            return
        if fault == "busy":
            self.send_error(503)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Type", server.kinds.get(self.path, "application/octet-stream"))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if server.lengths:
            self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        rest = body[first:]
        self.wfile.write(rest[: len(rest) // 2] if fault else rest)
        if fault == "stall":
            self.wfile.flush()
            server.outlived += not server.over.wait(20)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    monkeypatch.setattr(fetch, "STALL", 10)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def zipped(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def path_of(name: str) -> str:
    return f"/folder/{fetch.CAMUS_FOLDERS[name]}/download"


@pytest.fixture(scope="session")
def release(phantom) -> dict[str, bytes]:
    """The phantom as the public page serves CAMUS: a zip of each of its two folders."""
    return {
        path_of(folder): zipped(
            {str(p.relative_to(phantom.root)): p.read_bytes() for p in sorted((phantom.root / folder).rglob("*.*"))}
        )
        for folder in fetch.CAMUS_FOLDERS
    }


@pytest.fixture
def camus_server(server, release):
    server.files |= release
    return server


NIFTI = path_of("database_nifti")


def run(*words) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fetch", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def left_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_camus_arrives_and_every_frame_is_opened(camus_server, phantom, tmp_path):
    code, output = run("camus", tmp_path, "--accept-license", "--url", camus_server.url)
    assert code == 0
    assert "5 patients (3 training, 1 validation, 1 testing), 20 frames" in output
    assert "skipped" not in output
    assert {p.name for p in tmp_path.iterdir()} == set(fetch.CAMUS_FOLDERS)
    assert open_camus(tmp_path).digest() == phantom.digest()
    asked = len(camus_server.asked)
    assert run("camus", tmp_path, "--accept-license", "--url", camus_server.url)[0] == 0
    assert len(camus_server.asked) == asked  # what is there is not fetched again


def test_licence_comes_first(camus_server, tmp_path):
    code, output = run("camus", tmp_path / "new", "--url", camus_server.url)
    assert code == 1
    assert output.startswith("error: CAMUS is CC BY-NC-SA 4.0")
    assert "--accept-license" in output
    assert not camus_server.asked
    assert not (tmp_path / "new").exists()


def test_a_damaged_frame_is_reported(camus_server, phantom, tmp_path):
    entries = {str(p.relative_to(phantom.root)): p.read_bytes() for p in phantom.root.glob("database_nifti/*/*.*")}
    victim = phantom.patients("training")[0]
    entries[f"database_nifti/{victim}/{victim}_4CH_ED.nii.gz"] = b"not a frame"
    camus_server.files[NIFTI] = zipped(entries)
    code, output = run("camus", tmp_path, "--accept-license", "--url", camus_server.url)
    assert code == 0
    assert "4 patients (2 training, 1 validation, 1 testing), 16 frames" in output
    assert re.search(rf"skipped {victim}: .*{victim}_4CH_ED.nii.gz", output)


@pytest.mark.parametrize("fault", ["break", "stall", "busy"])
@pytest.mark.parametrize("ranges", [True, False])
def test_it_goes_on_after(fault, ranges, camus_server, phantom, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetch, "STALL", 1 if fault == "stall" else 10)
    camus_server.ranges, camus_server.faults[NIFTI] = ranges, [fault] * 2
    fetch.fetch_camus(tmp_path, camus_server.url)
    assert open_camus(tmp_path).digest() == phantom.digest()
    first, second, third = [asked for path, asked in camus_server.asked if path == NIFTI]
    assert first is None
    assert (second is not None) == (third is not None) == (fault != "busy")
    anew = capsys.readouterr().out.count("the server cannot resume")
    assert not camus_server.outlived
    assert anew == (0 if ranges or fault == "busy" else 2)
    if ranges and fault != "busy":
        assert int(third[6:-1]) > int(second[6:-1]) > 0
    assert {p.name for p in tmp_path.iterdir()} == set(fetch.CAMUS_FOLDERS)


def test_a_stream_of_unknown_length_that_breaks_off_is_noticed(camus_server, phantom, tmp_path):
    camus_server.lengths = camus_server.ranges = False  # as where a zip is made on the fly
    camus_server.faults[NIFTI] = ["break"]
    fetch.fetch_camus(tmp_path, camus_server.url)
    assert open_camus(tmp_path).digest() == phantom.digest()


def test_a_later_call_resumes(camus_server, phantom, tmp_path):
    camus_server.faults[NIFTI] = ["break"] * (fetch.RETRIES + 1)
    code, output = run("camus", tmp_path, "--accept-license", "--url", camus_server.url)
    assert code == 1
    assert output.splitlines()[-1].startswith(f"error: {camus_server.url}{NIFTI}: ")
    assert "goes on from here" in output
    assert left_in(tmp_path) == {"download.part/database_nifti.zip.part"}
    asked = len(camus_server.asked)
    assert run("camus", tmp_path, "--accept-license", "--url", camus_server.url)[0] == 0
    assert camus_server.asked[asked][1] is not None
    assert open_camus(tmp_path).digest() == phantom.digest()


def test_a_partial_file_of_something_else_is_not_gone_on_with(camus_server, phantom, tmp_path):
    part = tmp_path / "download.part" / "database_nifti.zip.part"
    part.parent.mkdir()
    part.write_bytes(bytes(len(camus_server.files[NIFTI])))  # its length: the server answers 416
    fetch.fetch_camus(tmp_path, camus_server.url)
    assert open_camus(tmp_path).digest() == phantom.digest()


def test_two_downloads_never_write_one_file(camus_server, tmp_path):
    with alone(tmp_path / "download.part" / ".lock", "busy"):
        code, output = run("camus", tmp_path, "--accept-license", "--url", camus_server.url)
    assert (code, camus_server.asked) == (1, [])
    assert f"{tmp_path}: another process downloads to this folder: wait for it" in output


def test_a_login_page_is_named(camus_server, tmp_path):
    camus_server.files[NIFTI], camus_server.kinds[NIFTI] = b"<html>Log in</html>" * 99, "text/html"
    code, output = run("camus", tmp_path, "--accept-license", "--url", camus_server.url)
    assert code == 1
    assert "no zip but text/html, a login page?" in output.splitlines()[-1]
    assert [path for path, _ in camus_server.asked] == [NIFTI]  # it is not asked for again and again
    assert not [*tmp_path.iterdir()]


def test_an_address_without_a_file_is_named(server, tmp_path):
    code, output = run("camus", tmp_path, "--accept-license", "--url", server.url)
    assert code == 1
    assert output.splitlines()[-1].startswith(f"error: {server.url}{NIFTI}: 404")
    assert len(server.asked) == 1
    server.server_close()
    code, output = run("camus", tmp_path, "--accept-license", "--url", "http://127.0.0.1:1")
    assert code == 1
    assert "goes on from here" in output.splitlines()[-1]


def test_a_truncated_zip_is_named(camus_server, tmp_path):
    camus_server.files[NIFTI] = camus_server.files[NIFTI][:-100]
    camus_server.ranges = False
    code, output = run("camus", tmp_path, "--accept-license", "--url", camus_server.url)
    assert code == 1
    assert "the zip ends early" in output.splitlines()[-1]
    assert left_in(tmp_path) == {"download.part/database_nifti.zip.part"}


def link(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc")
    return stream.getvalue()


def flipped(content: bytes) -> bytes:
    """A zip with one byte of its first file's content changed."""
    place = content.index(b"PK\1\2") // 2
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


HOSTILE = {
    "parent": (zipped({"database_nifti/a.txt": b"", "../outside.txt": b"x"}), "leads out of the folder"),
    "deep parent": (zipped({"database_nifti/../../outside.txt": b"x"}), "leads out of the folder"),
    "windows parent": (zipped({"database_nifti\\..\\..\\outside.txt": b"x"}), "leads out of the folder"),
    "absolute": (zipped({"/tmp/outside.txt": b"x"}), "leads out of the folder"),
    "drive": (zipped({"C:/outside.txt": b"x"}), "leads out of the folder"),
    "link": (link("database_nifti/link"), "is a link"),
    "bomb": (zipped({"database_nifti/zeros": bytes(3_000_000)}), "more than 0.001 GB"),
    "flipped byte": (flipped(zipped({"database_nifti/a": bytes(range(256)) * 9})), "the zip is thrown away"),
    "empty": (zipped({}), "the zip is thrown away"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_zip_leaves_nothing(kind, camus_server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "UNPACKED_GB", 0.001)
    camus_server.files[NIFTI], reason = HOSTILE[kind]
    folder = tmp_path / "inner" / "camus"
    code, output = run("camus", folder, "--accept-license", "--url", camus_server.url)
    assert code == 1
    assert reason in output.splitlines()[-1]
    assert output.splitlines()[-1].startswith("error: database_nifti: ")
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "camus"]


@pytest.fixture
def weights_server(server):
    """A record of a checkpoint, a zip of another, and a note."""
    contents = {
        "ema_0.9999_050000_2ch_ed_256.pt": b"weights" * 50_000,
        "checkpoints.zip": zipped({"checkpoints/ema_0.9999_050000_4ch_ed_256.pt": b"more"}),
        "note.txt": b"read me",
    }
    files = []
    for name, content in contents.items():
        server.files[f"/files/{name}"] = content
        checksum = f"md5:{hashlib.md5(content).hexdigest()}"
        files.append({"key": name, "checksum": checksum, "links": {"self": f"{server.url}/files/{name}"}})
    server.files["/record"] = json.dumps({"files": files}).encode()
    return server


@pytest.mark.parametrize("ranges", [True, False])
def test_released_weights_arrive_by_their_checksums(ranges, weights_server, tmp_path):
    checkpoint, weights_server.ranges = "ema_0.9999_050000_2ch_ed_256.pt", ranges
    weights_server.faults[f"/files/{checkpoint}"] = ["break"]
    command = ("released-weights", tmp_path, "--url", f"{weights_server.url}/record")
    code, output = run(*command)
    assert code == 0
    assert [path for path, _ in weights_server.asked].count(f"/files/{checkpoint}") == 2
    arrived = {checkpoint, "checkpoints/ema_0.9999_050000_4ch_ed_256.pt", "note.txt"}
    assert left_in(tmp_path) == arrived
    assert (tmp_path / checkpoint).read_bytes() == weights_server.files[f"/files/{checkpoint}"]
    assert all(str(tmp_path / name) in output for name in arrived if name.endswith(".pt"))

    (tmp_path / checkpoint).write_bytes(b"changed since")
    asked = len(weights_server.asked)
    assert run(*command)[0] == 0
    assert [path for path, _ in weights_server.asked[asked:]] == ["/record", f"/files/{checkpoint}"]
    assert (tmp_path / checkpoint).read_bytes() == weights_server.files[f"/files/{checkpoint}"]


def test_wrong_weights_are_refused(weights_server, tmp_path):
    weights_server.files["/files/ema_0.9999_050000_2ch_ed_256.pt"] = b"other" * 50_000
    code, output = run("released-weights", tmp_path, "--url", f"{weights_server.url}/record")
    assert code == 1
    assert "MD5 hash" in output.splitlines()[-1]
    assert not [*tmp_path.iterdir()]
    weights_server.files["/record"] = b"<html>"
    code, output = run("released-weights", tmp_path, "--url", f"{weights_server.url}/record")
    assert code == 1
    assert "/record: no record of files" in output.splitlines()[-1]


def test_addresses_stand_in_one_place():
    text = "".join(p.read_text() for p in sorted((REPOSITORY / "reproduction").rglob("*.py")))
    for address in (fetch.CAMUS_URL, fetch.WEIGHTS_URL, *fetch.CAMUS_FOLDERS.values()):
        assert text.count(address) == 1
