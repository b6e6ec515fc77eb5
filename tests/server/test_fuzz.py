"""Generated requests of the server's own OpenAPI schema: none breaks it."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from diffusers_flux_ext.server.app import create_app
from diffusers_flux_ext.server.errors import TYPES
from diffusers_flux_ext.server.job_drawer import JobDrawer
from diffusers_flux_ext.server.limits import Limits
from diffusers_flux_ext.server.offers import make_served
from diffusers_flux_ext.server.room import ModelRoom
from diffusers_flux_ext.server.service import JobService
from diffusers_flux_ext.server.store import JobStore
from diffusers_flux_ext.server.uploads import UploadStore

from .conftest import FakeDrawer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
BOUNDED = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


class Checking(FakeDrawer):
    """Checks jobs as they are checked, and draws with the stand-in."""

    def __init__(self, drawer: JobDrawer) -> None:
        super().__init__(steps=1)
        self.arguments, self.check = drawer.arguments, drawer.check


# The whole schema of a job takes minutes to generate from; wrong values of all of its parts are tried below.
TEXT, WHOLE = {"type": "string", "maxLength": 20}, {"type": "integer"}
JOB = {
    "type": "object",
    "properties": {
        "model": {"type": "object", "properties": {"path": {"enum": ["tiny", "x"]}}, "required": ["path"]},
        "call": {
            "type": "object",
            "properties": {"prompt": TEXT, "seed": WHOLE, "width": WHOLE, "num_inference_steps": WHOLE},
        },
        "conditions": {
            "type": "array", "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {"type": {"enum": ["EntityRegions", "InpaintRegion"]}, "prompts": {}, "masks": {}},
            },
        },
        "loras": {"type": "array", "maxItems": 2},
        "output": {"type": "object"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a server with the real checks and the real schema."""
    limits, folder = Limits(queue=1000), tmp_path_factory.mktemp("state")
    served, uploads = make_served([("tiny", {"path": "tiny"})]), UploadStore(folder, limits)
    drawer = Checking(JobDrawer(served, uploads, limits, "cpu"))
    service = JobService(
        served, drawer, JobStore(folder, limits), uploads, limits, ModelRoom({}, None, drawer.release)
    )
    app = create_app(service, JOB, {}, "1")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def check_answer(answer):
    """No answer tells of the inside, and every refusal has the one shape."""
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "field", "problems"}
        assert answer.json()["error"]["type"] in TYPES.values()


@pytest.fixture(scope="module")
def operations(client):
    """The operations of the schema by method and path."""
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    return {(found.method.upper(), found.path): found for found in (each.ok() for each in schema.get_all_operations())}


OPERATIONS = [
    ("GET", "/api/health"), ("GET", "/api/metrics"), ("GET", "/api/schema"), ("GET", "/api/options"),
    ("POST", "/api/uploads"), ("POST", "/api/check"), ("POST", "/api/jobs"), ("GET", "/api/jobs"),
    ("GET", "/api/jobs/{job}"), ("DELETE", "/api/jobs/{job}"), ("GET", "/api/jobs/{job}/images/{index}"),
    ("GET", "/api/jobs/{job}/events"), ("GET", "/v1/models"), ("GET", "/v1/models/{name}"),
    ("POST", "/v1/images/generations"),
]  # fmt: skip


# Forms with files are generated below, which is much faster.
FORMS = [("POST", "/v1/images/edits")]


def test_every_operation_is_tried(operations):
    assert sorted(operations) == sorted(OPERATIONS + FORMS)


@pytest.mark.slow
@pytest.mark.parametrize("method, path", OPERATIONS)
def test_generated_requests_are_answered(client, operations, method, path):
    operation = operations[method, path]

    @BOUNDED
    @given(case=operation.as_strategy())
    def run(case):
        check_answer(client.request(**_request(case)))

    run()


def _request(case):
    """The request of a case, for a client that is not schemathesis' own."""
    sent = case.as_transport_kwargs(base_url="http://testserver")
    names = {
        "method": "method",
        "url": "url",
        "headers": "headers",
        "params": "params",
        "data": "data",
        "json": "json",
    }
    found = {names[name]: value for name, value in sent.items() if name in names and value is not None}
    found["headers"] = {name: value for name, value in dict(found.get("headers", {})).items() if value is not None}
    if sent.get("files"):
        found["files"] = sent["files"]
    if isinstance(found.get("data"), (bytes, str)):
        found["content"] = found.pop("data")
    return found


@BOUNDED
@given(JSON, st.sampled_from(["/api/check", "/api/jobs", "/v1/images/generations"]))
def test_any_json_is_answered(client, value, path):
    check_answer(client.post(path, content=json.dumps(value), headers={"Content-Type": "application/json"}))


@BOUNDED
@given(
    st.dictionaries(st.sampled_from(["prompt", "n", "size", "flux", "model", "stream", "x"]), st.text(max_size=8)),
    st.lists(st.tuples(st.sampled_from(["image", "image[]", "mask", "x"]), st.binary(max_size=40)), max_size=3),
)
def test_any_form_is_answered(client, fields, files):
    parts = [(name, ("a.png", data, "image/png")) for name, data in files]
    check_answer(client.post("/v1/images/edits", data=fields, files=parts))


@settings(BOUNDED, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "version",
                "model",
                "pipeline",
                "components",
                "loras",
                "additions",
                "conditions",
                "call",
                "memory",
                "output",
            ]
        ),
        JSON,
    )
)
def test_any_values_of_a_job_are_answered(client, job):
    check_answer(client.post("/api/check", json=job))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff\xfe", b'{"call": NaN}', b"[" * 100_000, b'{"a":' * 50_000, b'{"call": {"seed": 1e999}}',
        b'{"call": {"seed": ' + b"9" * 5000 + b"}}", b'{"call": {"prompt": "\\ud800"}}', b'"\\u0000"',
        b'{"call": {"prompt": "\\u0000"}}', b'{"call": {"num_inference_steps": -1}}', b'{"call": {"width": 0}}',
        b'{"call": {"prompt": "x", "seed": [1, 2]}}', b'{"model": {"path": "\\u0000"}}',
    ],
    ids=range(15),
)  # fmt: skip
def test_odd_bodies_are_answered(client, body):
    for path in ("/api/check", "/api/jobs", "/v1/images/generations"):
        check_answer(client.post(path, content=body, headers={"Content-Type": "application/json"}))
