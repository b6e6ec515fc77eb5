"""The page's files."""

import pytest

from diffusers_flux_ext.server.api.page import StaticFile, static_files


@pytest.fixture
def page(client):
    """A client of a server with three files."""
    client.app.state.static = {
        "index.html": StaticFile(b"<!doctype html>", "text/html; charset=utf-8", '"a"'),
        "app.js": StaticFile(b"1", "text/javascript; charset=utf-8", '"b"'),
        "form/field.js": StaticFile(b"2", "text/javascript; charset=utf-8", '"c"'),
    }
    return client


def test_files_are_sent_with_their_types(page):
    answers = {path: page.get(path) for path in ("/", "/static/app.js", "/static/form/field.js")}
    assert [answer.text for answer in answers.values()] == ["<!doctype html>", "1", "2"]
    assert answers["/"].headers["Content-Type"] == "text/html; charset=utf-8"
    assert answers["/static/app.js"].headers["Content-Type"] == "text/javascript; charset=utf-8"
    policy = answers["/"].headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_a_browser_asks_whether_a_file_has_changed(page):
    answer = page.get("/static/app.js")
    assert answer.headers["Cache-Control"] == "no-cache"
    again = page.get("/static/app.js", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/static/", "/static", "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py",
        "/static//etc/passwd", "/static/%2fetc%2fpasswd",
        "/static/form", "/static/app.js%00.png", "/static/....//app.py", "/app.py",
        "/static/..\\app.py", "/api/jobs/..%2f..%2flock", "/api/jobs/%2e%2e/images/0", "/index.html",
        "/api/jobs/00000000000000000000000000000000/images/..%2f0.png",
    ],
)  # fmt: skip
def test_nothing_else_is_sent(page, path):
    answer = page.get(path)
    assert answer.status_code in (404, 422), answer.text
    assert set(answer.json()) == {"error"}


def test_the_list_has_the_files_of_a_page_and_nothing_else(tmp_path):
    for name in ("index.html", "core/state.js", "core/deep/a.css", "secret.py", "core/key.pem", "no_suffix"):
        path = tmp_path / "static" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = static_files(tmp_path / "static")
    assert {name: file.data.decode() for name, file in found.items()} == {
        name: name for name in ("index.html", "core/state.js", "core/deep/a.css")
    }
    assert len({file.tag for file in found.values()}) == 3
