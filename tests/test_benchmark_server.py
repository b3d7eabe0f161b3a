"""The benchmark of the server with tiny settings: two servers in turns, then an invalid request of each kind."""

import importlib
import json
import sys

import pytest


def test_load_and_bad_requests(repository, tmp_path, warm_python, monkeypatch):
    pytest.importorskip("starlette", reason="the extra [serve] is not installed")
    monkeypatch.syspath_prepend(repository / "scripts")
    script = importlib.import_module("benchmark_server")
    with open(tmp_path / "errors.txt", "w") as errors:
        monkeypatch.setattr(script, "start_process", lambda words: warm_python.start(*words, stderr=errors))
        few = ["--clients", "4", "--seconds", "0.6", "--bad_requests", "13", "--picture_side", "64", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["benchmark_server.py", *few, "--output", str(tmp_path)])
        script.main()
    (file,) = tmp_path.glob("server_*.json")
    results = json.loads(file.read_text())
    assert results["bad_requests"]["answered_4xx"] == results["bad_requests"]["requests"] == 13
    assert results["bad_requests"]["same_answer_to_a_good_request"]
    load = [each for each in results["load"].values() if isinstance(each, dict)]
    assert len(load) == 2 and all(each["answers"] > 0 and not each["failures"] for each in load)
    assert results["load"]["throughput_over_single"] > 0
