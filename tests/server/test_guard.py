"""What every request passes first."""

import time

import pytest
from starlette.testclient import TestClient

from diffusers_flux_ext.server.guard import COOKIE, HEADERS
from diffusers_flux_ext.server.limits import Limits

from .conftest import job, make_app


TOKEN = "correct horse battery staple"


@pytest.fixture
def guarded(tmp_path, drawer):
    """A server that needs a token."""
    app = make_app(tmp_path, drawer, tokens=[TOKEN, "another"])
    with TestClient(app, base_url="http://example.org", follow_redirects=False) as client:
        yield client


@pytest.fixture
def local(tmp_path, drawer):
    """A server on loopback."""
    app = make_app(tmp_path, drawer, Limits(body_bytes=2000, upload_bytes=1000), hosts=["localhost", "[::1]"])
    with TestClient(app, base_url="http://localhost:8000") as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/api/jobs", "/api/metrics", "/v1/models", "/openapi.json"])
def test_nothing_is_answered_without_a_token(guarded, path):
    answer = guarded.get(path)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("given", ["Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", "Bearer ", TOKEN])
def test_another_token_is_refused(guarded, given):
    assert guarded.get("/api/jobs", headers={"Authorization": given}).status_code == 401


def test_each_token_is_accepted(guarded):
    for token in (TOKEN, "another"):
        assert guarded.get("/api/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_health_needs_no_token(guarded):
    assert guarded.get("/api/health").json()["status"] == "ok"


def test_a_browser_changes_the_token_of_an_address_into_a_cookie(guarded):
    assert guarded.get("/", params={"token": "wrong"}).status_code == 401
    answer = guarded.get("/", params={"token": TOKEN})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert guarded.get("/api/jobs").status_code == 200
    guarded.cookies.set(COOKIE, TOKEN, domain="example.org")
    guarded.cookies.clear()
    assert guarded.get("/api/jobs", headers={"Cookie": f"{COOKIE}={TOKEN}"}).status_code == 401


def test_no_token_is_written_to_disk_or_answered(guarded, tmp_path, drawer):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    name = guarded.post("/api/jobs", json=job(), headers=headers).json()["id"]
    while guarded.get(f"/api/jobs/{name}", headers=headers).json()["status"] != "done":
        time.sleep(0.01)
    assert TOKEN not in guarded.get(f"/api/jobs/{name}", headers=headers).text
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "localhost:1:2"])
def test_another_host_is_refused(local, host):
    assert local.get("/api/jobs", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "[::1]:8000", "[::1]"])
def test_the_servers_own_names_are_accepted(local, host):
    assert local.get("/api/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_pages_of_other_sites_are_refused(local, headers):
    assert local.post("/api/jobs", json=job(), headers=headers).status_code == 403
    assert local.get("/api/jobs").json() == {"jobs": []}


def test_the_page_itself_is_answered_and_nobody_is_told_that_others_may_ask(local):
    answer = local.post("/api/jobs", json=job(), headers={"Origin": "http://localhost:8000"})
    assert answer.status_code == 202
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert local.options("/api/jobs").status_code == 405


def test_a_form_of_another_site_is_no_job(local):
    answer = local.post("/api/jobs", content='{"call": {}}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


def test_every_answer_has_the_headers_of_safety(local):
    for path in ("/api/health", "/nothing", "/api/jobs/zzz"):
        answer = local.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert answer.headers["Cache-Control"] == "no-store"
        assert "server" not in answer.headers


def test_a_large_body_is_refused_before_it_is_read(local):
    sent = []

    def body():
        for _ in range(100):
            sent.append(1)
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    answer = local.post("/api/jobs", content=body(), headers={**headers, "Content-Length": "10000"})
    assert answer.status_code == 413
    answer = local.post("/api/jobs", content=body(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "too_large_error"
    assert local.post("/api/uploads", content=b"x" * 1001, headers={"Content-Type": "image/png"}).status_code == 413
