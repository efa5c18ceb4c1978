"""Finding a model: folders, and a hub's repositories fetched over HTTP from a small hub on this machine."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from minigrpo.policy.files.hub import find_model
from tests.quick import rest_slow


def refusal(call, *arguments, **options):
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    return str(error.value)


# -------------------------------------------------------------------------------------------------------------- folders
def test_a_folder_without_config_and_a_path_that_is_none(tmp_path):
    assert "no config.json" in refusal(find_model, tmp_path)
    for path in (tmp_path / "nowhere", "./nowhere", "nowhere", "a/b/c"):
        assert f"there is no folder {path}" in refusal(find_model, path)


def test_pickled_weights_are_refused_by_name_unless_weights_are_not_asked_for(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert refusal(find_model, tmp_path).startswith(f"{tmp_path} has no model.safetensors nor shards of it, and nothing else")
    assert find_model(tmp_path, weights=False) == tmp_path
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_model(tmp_path) == tmp_path


# --------------------------------------------------------------------------------------------------------- a hub of our own
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(NamedTuple):
    """``repositories``: files by name, or the status and error code of each answer. ``asked``: what was asked for."""

    address: str
    repositories: dict[str, dict[str, bytes] | tuple[int, str]]
    asked: list[str]


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Speaks as much of the hub's protocol as fetching takes: what a repository is, its list of files, and each file."""
    repositories, asked = {}, []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0].strip("/")
            asked.append(f"{self.command} {path}")
            name = "/".join(path.removeprefix("api/models/").split("/")[:2])
            repository = repositories.get(name, (404, "RepoNotFound"))
            if "refuses files" in repository and "/resolve/" in path:
                return self.give(b"", 403, {"X-Error-Code": "GatedRepo"})
            if isinstance(repository, tuple):
                return self.give(b"", repository[0], {"X-Error-Code": repository[1]})
            if "/tree/" in path:
                files = [{"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                         for file, data in repository.items()]
                return self.give(json.dumps(files).encode())
            if path.startswith("api/"):
                siblings = [{"rfilename": file} for file in repository]
                return self.give(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
            data = repository[path.split(f"/resolve/{COMMIT}/")[1]]
            return self.give(data, 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

        do_HEAD = do_GET

        def give(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), "Content-Type": "text/json", **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Hub(f"http://127.0.0.1:{server.server_port}", repositories, asked)
        server.shutdown()
        thread.join()


SCRIPT = """
import sys
from minigrpo.policy.files.hub import find_model
try:
    print(find_model(sys.argv[1], weights=sys.argv[2] == "True"))
except ValueError as error:
    print("refused:", error)
"""


@pytest.fixture
def find(tmp_path):
    """``find(name, HF_ENDPOINT=...)`` → what find_model gives, or "refused: ..."; in a process of its own, as the hub's
    library reads its environment once. The cache is in ``tmp_path / "home"``; Xet, the hub's other way to send files, is
    off."""
    def call(name: str, *, weights: bool = True, within: tuple[str, ...] = (), **environment: str) -> str:
        home = {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([*within, sys.executable, "-c", SCRIPT, name, str(weights)], capture_output=True, text=True,
                              check=False, env=os.environ | {"no_proxy": "127.0.0.1"} | home | environment)
        assert done.returncode == 0, done.stderr
        line, = done.stdout.splitlines()
        return line

    return call


@pytest.fixture
def tiny(checkpoint) -> dict[str, bytes]:
    """A repository as they are: weights in shards, a second time pickled, and what nobody here reads."""
    folder, theirs = checkpoint("llama")
    shards = folder / "shards"
    if not shards.exists():
        theirs.save_pretrained(shards, max_shard_size="20KB")
    files = {file.name: file.read_bytes() for file in shards.iterdir()}
    return files | {"tokenizer.json": b"{}", "tokenizer_config.json": b"{ }", "pytorch_model.bin": b"pickled",
                    "README.md": b"#", "original/model.safetensors": b"again"}


SMALL = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def names(folder: str) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file()}


def test_a_repository_is_fetched_once_and_only_what_is_read_of_it_and_is_then_there_without_a_network(hub, find, tiny):
    hub.repositories["some/model"] = tiny
    folder = find("some/model", HF_ENDPOINT=hub.address)
    shards = {name for name in tiny if name.startswith("model-")}
    assert len(shards) > 1 and names(folder) == SMALL | shards | {"model.safetensors.index.json"}
    assert all((Path(folder) / name).read_bytes() == tiny[name] for name in names(folder))
    fetched = [path.rpartition(f"{COMMIT}/")[2] for path in hub.asked if path.startswith("GET") and "/resolve/" in path]
    assert sorted(fetched) == sorted(names(folder))
    assert find("some/model", HF_HUB_OFFLINE="1") == folder
    assert find("some/model", HF_ENDPOINT="http://127.0.0.1:9") == folder       # port 9 of this machine is closed


@pytest.mark.slow
def test_without_weights_only_the_small_files_are_fetched(hub, find, tiny):
    hub.repositories["some/model"] = tiny
    folder = find("some/model", weights=False, HF_ENDPOINT=hub.address)
    assert names(folder) == SMALL
    assert find("some/model", weights=False, HF_HUB_OFFLINE="1") == folder
    # That is no model yet: without a network it is a part of one, and with one the rest is fetched.
    assert "the hub is out of reach, with a part of it in the cache" in find("some/model", HF_HUB_OFFLINE="1")
    assert find("some/model", HF_ENDPOINT=hub.address) == folder and "model.safetensors.index.json" in names(folder)


@pytest.mark.slow
def test_a_cache_that_lacks_only_what_is_not_needed_works_without_a_network(hub, find, tiny):
    """As when other software has filled it."""
    hub.repositories["some/model"] = tiny
    folder = find("some/model", HF_ENDPOINT=hub.address)
    (Path(folder) / "tokenizer_config.json").unlink()
    assert find("some/model", HF_HUB_OFFLINE="1") == folder
    next(Path(folder).glob("model-00002*")).unlink()
    assert "with a part of it in the cache" in find("some/model", HF_HUB_OFFLINE="1")


@pytest.mark.slow
def test_a_hub_that_fails_or_closes_a_model_leaves_what_is_in_the_cache(hub, find, tiny):
    hub.repositories["some/model"] = tiny
    folder = find("some/model", HF_ENDPOINT=hub.address)
    for answer in ((500, ""), (403, "GatedRepo"), (404, "RepoNotFound")):
        hub.repositories["some/model"] = answer
        assert find("some/model", HF_ENDPOINT=hub.address) == folder


@pytest.mark.parametrize("answer, sentence", rest_slow([
    ((403, "GatedRepo"),
     "the hub's model of that name is gated: ask for access at ADDRESS/some/model, then log in by hf auth login, or set "
     "HF_TOKEN"),
    ((404, "RepoNotFound"),
     "the hub has no public model of that name: check it; if it is private, log in by hf auth login, or set HF_TOKEN"),
    ((404, "RevisionNotFound"),
     "the hub's model of that name has no revision main: fetch the one you want and give its folder"),
]))
def test_a_hub_that_says_no_is_one_sentence_that_says_what_to_do(hub, find, answer, sentence):
    hub.repositories["some/model"] = answer
    message = find("some/model", HF_ENDPOINT=hub.address)
    assert message == f"refused: model.path: there is no folder some/model, and {sentence.replace('ADDRESS', hub.address)}"


def test_a_gated_model_tells_what_it_is_and_keeps_its_files(hub, find, tiny):
    """So the hub does it: everybody may see what files there are."""
    hub.repositories["some/model"] = tiny | {"refuses files": b""}
    assert "is gated: ask for access at" in find("some/model", HF_ENDPOINT=hub.address)


def test_a_repository_of_pickled_weights_alone_is_refused(hub, find, tiny):
    hub.repositories["some/model"] = {name: data for name, data in tiny.items() if not name.startswith("model")}
    message = find("some/model", HF_ENDPOINT=hub.address)
    assert message.startswith("refused: some/model has no model.safetensors nor shards of it, and nothing else is read")
    assert names(find("some/model", weights=False, HF_ENDPOINT=hub.address)) == SMALL


def test_a_name_that_no_hub_can_have_is_one_sentence(find):
    assert find("a b/c", HF_HUB_OFFLINE="1") == \
        "refused: model.path: there is no folder a b/c, nor can the hub have a model of that name"


def test_a_full_disk_is_one_sentence(hub, find, tiny, tmp_path):
    """The cache is a file system of 32 KB, seen by that process alone; the weights have more."""
    within = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=32k none "$HF_HOME" && exec "$@"', "sh")
    (tmp_path / "home").mkdir()
    home = os.environ | {"HF_HOME": str(tmp_path / "home")}
    if shutil.which("unshare") is None or subprocess.run([*within, "true"], env=home, check=False).returncode:
        pytest.skip("no process can mount a file system here")
    hub.repositories["some/model"] = tiny
    assert sum(map(len, tiny.values())) > 64_000
    assert find("some/model", within=within, HF_ENDPOINT=hub.address) == (
        "refused: model.path: there is no folder some/model, and the disk is too full to fetch it into "
        f"{tmp_path}/home/hub: make room, or set HF_HOME to another place")


@pytest.fixture
def rude_server():
    """The address of a server that hangs up after the first byte."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        def answer():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:                         # closed: the test is over
                    return
                with connection:
                    connection.recv(1)

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("trouble", rest_slow(["offline", "out of reach", "hangs up"]))
def test_a_hub_that_gives_nothing_is_one_clear_error(find, rude_server, tmp_path, trouble):
    environment = {"offline": {"HF_HUB_OFFLINE": "1"}, "out of reach": {"HF_ENDPOINT": "http://127.0.0.1:9"},
                   "hangs up": {"HF_ENDPOINT": rude_server}}[trouble]
    message = find("no-such-owner/no-such-model", **environment)
    assert message.startswith(
        "refused: model.path: there is no folder no-such-owner/no-such-model, and the hub is out of reach, with nothing of it "
        f"in the cache {tmp_path}/home/hub: give a folder, or fetch it where there is a network (")
