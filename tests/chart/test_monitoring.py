"""Monitors, rules and the dashboard speak of metrics that exist, and Prometheus' own tool takes the rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered_chart import VALUES, Chart, Rendered

from operators import metrics

S3: dict[str, Any] = {
    "images": {"loaded": True},
    "profiles": {"default": {"root": "s3://b", "secret": "k", "controllerSecret": "k"}},
}
# The server's, which this checks by name: it is another process.
SERVER = {
    "nanochat_requests_running",
    "nanochat_requests_waiting",
    "nanochat_time_to_first_token_seconds",
    "nanochat_inter_token_seconds",
    "nanochat_generated_tokens",
    "nanochat_prompt_tokens",
    "nanochat_prompt_tokens_reused",
    "nanochat_rejected",
    "nanochat_cancelled",
    "nanochat_model_info",
    "nanochat_kv_cache_tokens",
    "nanochat_kv_cache_capacity_tokens",
    "nanochat_gpu_memory_used_bytes",
    "nanochat_gpu_memory_bytes",
    "nanochat_gpu_utilization_ratio",
}
KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule")


@pytest.fixture(scope="module")
def monitored(chart: Chart) -> Rendered:
    return chart.render(VALUES / "monitoring.yaml")


def rules(rendered: Rendered) -> list[dict[str, Any]]:
    return rendered.one("PrometheusRule", "nanochat-rules")["spec"]["groups"][0]["rules"]


def dashboard(rendered: Rendered) -> dict[str, Any]:
    return json.loads(rendered.one("ConfigMap", "nanochat-dashboard")["data"]["nanochat.json"])


def test_only_where_it_is_wanted_and_known(chart: Chart) -> None:
    enabled = {"monitoring": {"enabled": True}}
    for values, apis, count in (
        ({}, ("monitoring.coreos.com/v1",), 0),
        (enabled, (), 0),
        (enabled, ("monitoring.coreos.com/v1",), 3),
    ):
        rendered = chart.render(S3, values, apis=apis)
        assert sum(len(rendered.of(kind)) for kind in KINDS) == count
    rendered = chart.render(VALUES / "dev_store.yaml")
    assert [len(rendered.of(kind)) for kind in KINDS] == [1, 0, 0]
    assert len(rendered.of("ConfigMap")) == 1


def test_labels_that_they_are_found_by(monitored: Rendered) -> None:
    for kind in KINDS:
        for item in monitored.of(kind):
            assert item["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    labels = monitored.one("ConfigMap", "nanochat-dashboard")["metadata"]["labels"]
    assert labels["grafana_dashboard"] == "nanochat"


def test_the_metrics_exist(monitored: Rendered) -> None:
    known = SERVER | {metric.name for metric in metrics.REGISTRY.collect()}
    queries = [target["expr"] for panel in dashboard(monitored)["panels"] for target in panel.get("targets", ())]
    queries += [rule["expr"] for rule in rules(monitored)]
    spoken = {name for query in queries for name in re.findall(r"\bnanochat_[a-z_]+", query)}
    bare = {re.sub(r"_(total|bucket)$", "", name) for name in spoken}
    assert bare - known == set()
    assert SERVER - bare == set(), "metrics that no panel shows"


def test_panels(monitored: Rendered) -> None:
    found = dashboard(monitored)["panels"]
    assert len({panel["id"] for panel in found}) == len(found) >= 14
    taken: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert 'namespace="ns",pod=~"nanochat-' in target["expr"]


# What Prometheus sees, by minutes, and the alerts that it raises at a time.
CONTROLLER, POD = 'namespace="ns",pod="nanochat-controller-a"', 'namespace="ns",pod="nanochat-inference-a"'
UP = 'up{job="nanochat-controller",namespace="ns"}'
STORIES: dict[str, tuple[dict[str, str], str, set[str]]] = {
    "all is well": (
        {
            UP: "1x200",
            f'nanochat_pipelines{{{CONTROLLER},phase="Failed"}}': "2x200",
            f"nanochat_model_info{{{POD}}}": "1x200",
            f'nanochat_gpu_seconds_total{{{CONTROLLER},kind="productive"}}': "0+60x200",
            f'nanochat_gpu_seconds_total{{{CONTROLLER},kind="lost"}}': "0+1x200",
        },
        "90m",
        set(),
    ),
    "the controller is gone": ({UP: "1x10 0x20"}, "25m", {"NanochatControllerDown"}),
    "turns fail": (
        {UP: "1x60", f'nanochat_errors_total{{{CONTROLLER},kind="cluster"}}': "0+1x60"},
        "40m",
        {"NanochatLoopErrors"},
    ),
    "a first pipeline fails": (
        {UP: "1x60", f'nanochat_pipelines{{{CONTROLLER},phase="Failed"}}': "_x20 1x40"},
        "25m",
        {"NanochatPipelineFailed"},
    ),
    "a controller is replaced": (
        {
            UP: "1x60",
            f'nanochat_pipelines{{{CONTROLLER},phase="Failed"}}': "2x20 _x40",
            'nanochat_pipelines{namespace="ns",pod="nanochat-controller-b",phase="Failed"}': "_x21 2x40",
        },
        "25m",
        set(),
    ),
    "GPU time is lost": (
        {
            UP: "1x200",
            f'nanochat_gpu_seconds_total{{{CONTROLLER},kind="productive"}}': "0+60x200",
            f'nanochat_gpu_seconds_total{{{CONTROLLER},kind="lost"}}': "0+30x200",
        },
        "90m",
        {"NanochatGPUTimeLost"},
    ),
    "no model is served any more": (
        {UP: "1x60", f"nanochat_model_info{{{POD}}}": "1x20 stale"},
        "40m",
        {"NanochatInferenceNotReady"},
    ),
    "requests are turned away": (
        {UP: "1x60", f'nanochat_rejected_total{{{POD},reason="overloaded"}}': "0+3x60"},
        "40m",
        {"NanochatQueueFull"},
    ),
    "a version does not become ready": (
        {
            UP: "1x60",
            f"nanochat_serving_rejected_total{{{CONTROLLER}}}": "0x20 1x30",
        },
        "25m",
        {"NanochatVersionRejected"},
    ),
}


def promtool(folder: Path, *arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool (Debian's package prometheus) is not on PATH")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules(monitored: Rendered, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(monitored.one("PrometheusRule", "nanochat-rules")["spec"]))
    promtool(tmp_path, "check", "rules", "rules.yaml")


@pytest.mark.parametrize("story", STORIES)
def test_alerts(monitored: Rendered, tmp_path: Path, story: str) -> None:
    series, time, raised = STORIES[story]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(monitored.one("PrometheusRule", "nanochat-rules")["spec"]))
    tests = []
    for rule in rules(monitored):
        expected: dict[str, Any] = {"eval_time": time, "alertname": rule["alert"], "exp_alerts": []}
        if rule["alert"] not in raised:
            tests.append(expected)
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": tests,
        "promql_expr_test": [
            {
                "eval_time": time,
                "expr": f'count by (alertname) (ALERTS{{alertname="{name}",alertstate="firing"}})',
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}],
            }
            for name in sorted(raised)
        ],
    }
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(document))
    promtool(tmp_path, "test", "rules", "tests.yaml")
