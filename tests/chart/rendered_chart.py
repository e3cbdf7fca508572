"""The chart as helm renders it, with a view of the objects that its tests ask about.

rendered = Chart(helm).render(VALUES / "s3.yaml")
rendered.one("Deployment", "nanochat-controller")
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm" / "nanochat"
VALUES = Path(__file__).parent / "values"
FILES = [*sorted(VALUES.glob("*.yaml")), *sorted(CHART.glob("values-*.yaml"))]

Object = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """The objects of one release."""

    objects: tuple[Object, ...]

    def of(self, kind: str) -> list[Object]:
        return [item for item in self.objects if item["kind"] == kind]

    def one(self, kind: str, name: str, namespace: str | None = None) -> Object:
        found = [
            item
            for item in self.of(kind)
            if item["metadata"]["name"] == name and namespace in (None, item["metadata"].get("namespace"))
        ]
        assert len(found) == 1, f"{len(found)} of {kind} {name}"
        return found[0]

    def pods(self) -> Iterator[tuple[str, Object]]:
        """All pods and pod templates, by the name of their object."""
        for item in self.objects:
            if item["kind"] == "Deployment":
                yield item["metadata"]["name"], item["spec"]["template"]
            elif item["kind"] == "Pod":
                yield item["metadata"]["name"], item

    def container(self, deployment: str) -> Object:
        return self.one("Deployment", deployment)["spec"]["template"]["spec"]["containers"][0]

    def env(self, deployment: str) -> dict[str, Any]:
        """The variables of a Deployment's first container."""
        return {item["name"]: item.get("value", item.get("valueFrom")) for item in self.container(deployment)["env"]}

    def config(self, name: str = "nanochat-controller") -> Object:
        """The controller's configuration."""
        return yaml.safe_load(self.one("ConfigMap", name)["data"]["config.yaml"])


@dataclass(frozen=True)
class Chart:
    """helm with this chart."""

    helm: str

    def run(self, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KUBECONFIG": os.devnull}  # whatever cluster there is, it is not asked
        command = [self.helm, *arguments]
        return subprocess.run(command, env=environment, input=input, capture_output=True, text=True, check=False)

    def template(
        self,
        *values: Path | Mapping[str, Any],
        name: str = "nanochat",
        namespace: str = "ns",
        apis: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        """`helm template` with values files, over which go values as data."""
        files = [part for value in values if isinstance(value, Path) for part in ("-f", str(value))]
        given: Object = {}
        for value in values:
            if not isinstance(value, Path):
                given |= value
        versions = [part for api in apis for part in ("--api-versions", api)]
        command = ("template", name, str(CHART), "-n", namespace, *files, *versions, "-f", "-")
        return self.run(*command, input=yaml.safe_dump(given))

    def render(self, *values: Path | Mapping[str, Any], **options: Any) -> Rendered:
        done = self.template(*values, **options)
        assert done.returncode == 0, done.stderr
        return Rendered(tuple(item for item in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if item))


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a selector of labels alone selects these."""
    wanted = selector.get("matchLabels", selector)
    return bool(wanted) and all(labels.get(name) == value for name, value in wanted.items())
