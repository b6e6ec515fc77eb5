"""Which files may be opened."""

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_flux_ext.training.data.sources import FolderAccess
from diffusers_flux_ext.training.data.sources.paths import fetch_url


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a.png").write_bytes(b"inside")
    (tmp_path / "secret.png").write_bytes(b"outside")
    (folder / "link.png").symlink_to("../secret.png")
    (folder / "loop.png").symlink_to("in/a.png")
    return folder


def test_files_of_the_folder_are_opened(base: Path) -> None:
    access = FolderAccess(str(base))
    for reference in ("in/a.png", "in/../in/a.png", str(base / "in" / "a.png"), "loop.png"):
        assert access.open(reference) == b"inside"


@pytest.mark.parametrize("reference", ["../secret.png", "in/../../secret.png", "link.png", "/etc/passwd"])
def test_paths_and_links_that_leave_the_folder_are_refused(base: Path, reference: str) -> None:
    access = FolderAccess(str(base))
    for call in (access.open, access.stamp):
        with pytest.raises(ValueError, match="leads out of the folder"):
            call(reference)
    if reference != "/etc/passwd":
        assert FolderAccess(str(base), allow_outside=True).open(reference) == b"outside"


@pytest.mark.parametrize("reference", ["", "a\0b"])
def test_what_is_not_a_path_is_refused(base: Path, reference: str) -> None:
    with pytest.raises(ValueError, match="is not the path of a file"):
        FolderAccess(str(base)).open(reference)


def test_missing_files_are_named_and_backslashes_explained(base: Path) -> None:
    access = FolderAccess(str(base))
    with pytest.raises(FileNotFoundError, match="There is no file `in`"):
        access.open("in")
    with pytest.raises(FileNotFoundError, match="instead of backslashes"):
        access.open("in\\a.png")


@pytest.mark.parametrize("reference", ["http://localhost/a.png", "https://localhost/a.png"])
def test_urls_are_refused_unless_allowed(base: Path, reference: str) -> None:
    with pytest.raises(ValueError, match="is a URL, which is not fetched.*allow_urls=True"):
        FolderAccess(str(base)).open(reference)


def test_other_schemes_are_always_refused(base: Path) -> None:
    for reference in ("file:///etc/passwd", "ftp://localhost/a.png", "FILE://x"):
        with pytest.raises(ValueError, match="neither a path nor an http"):
            FolderAccess(str(base), allow_outside=True, allow_urls=True).open(reference)


class _Handler(http.server.BaseHTTPRequestHandler):
    failures = 0

    def do_GET(self) -> None:
        if self.path == "/flaky" and _Handler.failures == 0:
            _Handler.failures = 1
            self.send_error(503)
            return
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        self.wfile.write(b"served")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_allowed_urls_are_fetched_with_another_try(base: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert FolderAccess(str(base), allow_urls=True).open(f"{server}/flaky") == b"served"
    with pytest.raises(FileNotFoundError, match="404"):
        fetch_url(f"{server}/missing")
    with pytest.raises(ValueError, match="more than 3 bytes"):
        fetch_url(f"{server}/a", limit=3)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["..", ".", "in", "link.png", "loop.png", "a.png", "", "/", "secret.png", "~"]), max_size=7
    )
)
def test_no_path_reads_anything_outside(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    folder = tmp_path_factory.getbasetemp() / "paths" / "data"
    if not folder.exists():
        (folder / "in").mkdir(parents=True)
        (folder / "in" / "a.png").write_bytes(b"inside")
        (folder.parent / "secret.png").write_bytes(b"outside")
        os.symlink("../secret.png", folder / "link.png")
        os.symlink("in/a.png", folder / "loop.png")
    try:
        assert FolderAccess(str(folder)).open("/".join(parts)) == b"inside"
    except (ValueError, OSError):
        pass
