"""Lists of jobs in all their spellings."""

import io
import json

import pytest

from diffusers_flux_ext.jobs.batch.lists import JobListError, read_entries


A, B = {"call": {"prompt": "a"}}, {"call": {"prompt": "b\u2028c"}}


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name, text",
    [
        ("jobs.jsonl", f"{json.dumps(A)}\n\n{json.dumps(B, ensure_ascii=False)}\n"),
        ("jobs.ndjson", f"\ufeff{json.dumps(A)}\r\n{json.dumps(B)}"),
        ("jobs.json", json.dumps([A, B], indent=2)),
        ("jobs.yaml", '- call: {prompt: a}\n- call:\n    prompt: "b\\u2028c"\n'),
    ],
)
def test_all_spellings_say_the_same(tmp_path, name, text):
    entries = read_entries(write(tmp_path / name, text))
    assert [entry.content for entry in entries] == [A, B]
    assert all(entry.base == tmp_path and entry.problem is None for entry in entries)
    assert entries[0].place in (f"{name}, line 1", f"{name}, entry 1")


def test_a_folder_is_read_by_name_and_each_file_may_hold_one_job_or_several(tmp_path):
    write(tmp_path / "b.yml", "call: {prompt: last}")
    write(tmp_path / "a.json", json.dumps([A, B]))
    write(tmp_path / "notes.txt", "no job")
    assert [entry.place for entry in read_entries(tmp_path)] == ["a.json, entry 1", "a.json, entry 2", "b.yml"]


@pytest.mark.parametrize("text", [f"{json.dumps(A)}\n{json.dumps(B)}", json.dumps([A, B], indent=1)])
def test_the_standard_input_is_either(monkeypatch, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert [entry.content for entry in read_entries("-")] == [A, B]


def test_a_wrong_line_is_an_entry_with_its_problem(tmp_path):
    path = write(tmp_path / "jobs.jsonl", f'{json.dumps(A)}\n{{"call": \n[1]\n{"[" * 10_000}\n')
    problems = [(entry.place, entry.problem) for entry in read_entries(path)]
    assert problems[0] == ("jobs.jsonl, line 1", None)
    assert problems[1][0] == "jobs.jsonl, line 2"
    assert "is not JSON" in problems[1][1]
    assert "list; expected a job's entries" in problems[2][1]
    assert problems[3][1] is not None


def test_a_wrong_file_of_a_folder_is_an_entry_with_its_problem(tmp_path):
    write(tmp_path / "a.yaml", "call: [")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xff")
    entries = read_entries(tmp_path)
    assert "is not YAML or JSON" in entries[0].problem
    assert "cannot be read" in entries[1].problem


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("jobs.txt", "", "expected .jsonl"),
        ("jobs.jsonl", "\n", "holds no job"),
        ("jobs.yaml", "[]", "holds no job"),
        ("jobs.yaml", "", "holds no job"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, name, text, message):
    with pytest.raises(JobListError, match=message):
        read_entries(write(tmp_path / name, text))


def test_a_missing_list_is_refused(tmp_path):
    with pytest.raises(JobListError, match="There is no file or folder"):
        read_entries(tmp_path / "nothing.jsonl")


def test_yaml_makes_no_objects(tmp_path):
    entry = read_entries(write(tmp_path / "jobs.yaml", "!!python/object/apply:os.system ['true']"))[0]
    assert "is not YAML or JSON" in entry.problem
