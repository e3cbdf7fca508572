"""Store profiles: what variables and the file of profiles say, and one sentence for each mistake in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.pipeline.profiles import resolve_profile
from nanochat.spec.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ROOT", "ENDPOINT", "PROFILES"):
        monkeypatch.delenv(f"NANOCHAT_{name}", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def declare(monkeypatch: pytest.MonkeyPatch, folder: Path, content: str | bytes) -> Path:
    path = folder / "profiles.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("NANOCHAT_PROFILES", str(path))
    return path


def test_a_profile_of_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, home, "team: {root: s3://b/x, endpoint: https://s3.example.org, region: eu, anonymous: yes}")
    found = resolve_profile("team")
    assert (found.profile.root, found.profile.endpoint, found.profile.region) == (
        "s3://b/x",
        "https://s3.example.org",
        "eu",
    )
    assert found.profile.anonymous is True
    assert found.tracking == f"sqlite:///{home}/home/mlflow.db"


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        ("store", "store"),
        ("~/my store", "my store"),
        ("file://{home}/my%20store", "my store"),
        ("my%20store", "my%20store"),
    ],
)
def test_folders(home: Path, monkeypatch: pytest.MonkeyPatch, root: str, folder: str) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("NANOCHAT_ROOT", root.format(home=home))
    found = resolve_profile()
    assert found.profile.root == str(home / folder)
    assert found.tracking == f"sqlite:///{home / folder}/mlflow.db"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("team:\n\troot: /srv/models\n", "line 2 is indented with a tab: use blanks"),
        ("team: {root: /srv/mod\xf6les}".encode("latin-1"), "line 1 is not UTF-8"),
        ('default: {root: s3://b/x, anonymous: "false"}', "'default.anonymous': input should be a valid boolean"),
        ("default: {root: s3a://b/x}", "'default.root': s3a:// is not known here: write s3://"),
        ("default: {endpoint: 127.0.0.1:9000}", "'default.endpoint': it has no scheme: write http://127.0.0.1:9000"),
        ("default: {tracking: mlflow:5000}", "'default.tracking': it has no scheme"),
        ("default: {region: 010}", "'default.region': input should be a valid string (given: 8; put it in quotes)"),
        ("default: {rot: /a}", "unknown field 'default.rot'. Did you mean 'root'?"),
        ("default: {root: /a}\ndefault: {root: /b}", "'default' is given twice, in lines 1 and 2"),
        ("- root: /a", "must map profile names"),
        ("default: /a", "must map profile names"),
        (f"default: {{root: /{'a' * 1100}}}", "'default.root': string should have at most 1024 characters"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n" + "c: [" * 200, "deep"),
    ],
)
def test_mistakes_in_the_file(home: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, problem: str) -> None:
    path = declare(monkeypatch, home, content)
    with pytest.raises(UserError) as caught:
        resolve_profile()
    assert caught.value.message.startswith(str(path)) and problem in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


def test_a_file_that_is_named_must_be_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_profile().profile.root == str(home / "home")  # the user's own need not be
    monkeypatch.setenv("NANOCHAT_PROFILES", str(home / "absent.yaml"))
    with pytest.raises(UserError, match=r"no such file: .*absent\.yaml"):
        resolve_profile()


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("NANOCHAT_ROOT", "s3a://b/x", "write s3://"),
        ("NANOCHAT_ROOT", "http://host/x", "must be a folder, s3://"),
        ("NANOCHAT_ROOT", "s3://user:hunter2@b/x", "user name or password"),
        ("NANOCHAT_ENDPOINT", "127.0.0.1:9000", "write http://127.0.0.1:9000"),
        ("NANOCHAT_ENDPOINT", "http://user:hunter2@host:9000", "user name or password"),
        ("MLFLOW_TRACKING_URI", "https://user:hunter2@mlflow", "user name or password"),
        ("MLFLOW_TRACKING_URI", "mlflow:5000", "write http://mlflow:5000"),
    ],
)
def test_mistakes_in_variables(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, problem: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as caught:
        resolve_profile()
    assert caught.value.message.startswith(f"{variable}: ") and problem in caught.value.message
    assert "hunter2" not in caught.value.message


def test_names_of_profiles(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, home, "team: {root: /a}\nbare: {region: eu}")
    with pytest.raises(UserError, match=r"'tem', which is not declared\. Did you mean 'team'"):
        resolve_profile("tem")
    with pytest.raises(UserError, match="'bare', which has no root"):
        resolve_profile("bare")


def test_an_unknown_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANOCHAT_HOME")
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(UserError, match="set HOME, or NANOCHAT_HOME to a folder"):
        resolve_profile()
