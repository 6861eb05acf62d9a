"""A tag pushed to a real registry: pinned, from then on, by the digest it is kept under."""

import http.client
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from live_runs import until
from past_runs import debug_job

from tests.docker.conftest import DockerEngine
from tests.docker.test_compose import free_port
from titan_recipes.config.site import Container, Site
from titan_recipes.launch.image import image_reference, push_image
from titan_recipes.launch.submit import preview

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
NAME = "me/titan-recipes"
CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of Debian's docker-registry, empty; engines take the loopback device's as it is."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    port = free_port()
    config = tmp_path / "registry.yml"
    config.write_text(CONFIG.format(root=tmp_path / "registry", port=port))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([program, "serve", config], **quiet) as process:
        until(lambda: answers(port), "the registry answers")
        yield f"127.0.0.1:{port}"
        process.terminate()


def answers(port: int) -> bool:
    try:
        return kept_digest(f"127.0.0.1:{port}", "none") == ""
    except OSError:  # not up yet
        return False


def kept_digest(registry: str, tag: str) -> str:
    """What the registry says a tag's digest is; "" where it has none."""
    with closing(http.client.HTTPConnection(registry, timeout=5)) as connection:
        connection.request("HEAD", f"/v2/{NAME}/manifests/{tag}", headers={"Accept": MANIFEST})
        with connection.getresponse() as answer:
            return answer.headers.get("Docker-Content-Digest", "")


def test_pushed_image_is_pinned_by_the_registrys_digest(
    engine: DockerEngine, registry: str, tmp_path: Path
) -> None:
    (tmp_path / "hello").write_text("hello")
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        tar.add(tmp_path / "hello", "hello")
    tag = f"{registry}/{NAME}:0.1"
    engine.run("import", str(tmp_path / "root.tar"), tag)

    built = push_image(tag)

    assert built.digest == f"{registry}/{NAME}@{kept_digest(registry, '0.1')}"
    assert image_reference(tag) == built.digest
    job = replace(debug_job(), site=Site(container=Container(image=tag)))
    manifest = preview(job, outputs=str(tmp_path), name="a", scheduler="kubernetes")["job.yaml"]
    assert (built.digest in manifest, tag in manifest) == (True, False)
    engine.run("rmi", tag)
    engine.run("pull", built.digest)  # as a node does
    (found,) = json.loads(engine.run("image", "inspect", built.digest).stdout)
    assert found["Id"] == built.id
    engine.run("rmi", built.digest)
