"""The benchmark of the server with tiny settings: two servers in turns, then an invalid request of each kind."""

import json
import os

import pytest


def test_load_and_bad_requests(repository, tmp_path, warm_python):
    pytest.importorskip("starlette", reason="the extra [serve] is not installed")
    script = repository / "scripts" / "benchmark_server.py"
    few = ["--clients", "4", "--seconds", "0.6", "--bad_requests", "13", "--picture_side", "64", "--device", "cpu"]
    path = os.pathsep.join([str(repository / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    warm_python.run(script, *few, "--output", tmp_path, env=environment, check=True)
    (file,) = tmp_path.glob("server_*.json")
    results = json.loads(file.read_text())
    assert results["bad_requests"]["answered_4xx"] == results["bad_requests"]["requests"] == 13
    assert results["bad_requests"]["same_answer_to_a_good_request"]
    load = [each for each in results["load"].values() if isinstance(each, dict)]
    assert len(load) == 2 and all(each["answers"] > 0 and not each["failures"] for each in load)
    assert results["load"]["throughput_over_single"] > 0
