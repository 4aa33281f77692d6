"""docker-compose.yml run by docker-compose in a real Docker engine (`engine`), with our image built by our Dockerfile.

The image, the first start, the loop, `down` and `up`, twenty annotators, kills of every service, backup and restore;
and no packet leaves the machine.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from engine import ROOT, Engine, Stack, need_engine, run
from reading import THINKING, Reading
from service import QUICK, Lab, phantom_scans

from backend.errors import ScanqueueError
from backend.workers.counters import EVERY

pytestmark = [pytest.mark.label_studio, pytest.mark.timeout(3600)]  # the first run makes all images

Scans = list[tuple[Path, Path]]
READERS = 20
TWO_WORKERS = ("--scale", "worker=2")
PAGE = (ROOT / "docs" / "how-to" / "deployment.md").read_text()
AUDIT = (ROOT / "docs" / "reference" / "audit.md").read_text()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    need_engine()
    with Engine() as running:
        yield running


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(engine, tmp_path_factory.mktemp("project"), settings=QUICK) as running:
        began = time.monotonic()
        running.up()
        running.seconds_to_start = time.monotonic() - began
        running.first_doctor = running.one("scanqueue").execute("scanqueue", "doctor")
        running.set_up()
        yield running


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Scans:
    return phantom_scans(tmp_path_factory.mktemp("many"), 340, seed=5, side=128)


def published_once(lab: Lab) -> None:
    counts = Counter((p["task"], p["model_version"]) for p in lab.predictions())
    assert counts
    assert set(counts.values()) == {1}


def labelled_once(stack: Stack, lab: Lab, *, miscounted: int = 0) -> None:
    """Every submitted scan has exactly one annotation, no other scan has any, and scanqueue knows exactly these.

    miscounted  annotations that Label Studio may store without counting them in their task: it writes the annotation
                and the count one after the other, and was killed this many times
    """
    rows = stack.studio.get("/api/tasks", project=lab.project, page_size=10_000, include="id,total_annotations")
    counts = {row["id"]: row["total_annotations"] for row in rows["tasks"] if row["total_annotations"]}
    uncounted = set(lab.labelled) - set(counts)
    assert len(uncounted) <= miscounted
    assert all(len(stack.studio.annotations(task)) == 1 for task in uncounted)
    assert counts == dict.fromkeys(set(lab.labelled) - uncounted, 1)
    assert len(set(lab.labelled)) == len(lab.labelled)
    seen = stack.wait(lab.project, lambda s: s["labelled"] == len(counts) and s["job"] is None)
    assert seen["problems"] == []


def test_the_image_has_our_programs_only(engine: Engine, record_property: Any) -> None:
    inside = ("run", "--rm", "--read-only", "--network", "none", "--entrypoint", "sh", "scanqueue:latest", "-c")
    tools = "gcc g++ cc make ld uv pip pip3 git curl wget"
    found = engine.docker(
        *inside, f"for name in {tools}; do command -v $name; done; id -u; ls /opt /root/.cache /src || :"
    )
    assert found.split() == ["10001", "/opt:", "scanqueue"]
    told = engine.inspect("scanqueue:latest")["Config"]
    assert (told["User"], told["Entrypoint"], told["Cmd"]) == ("10001:10001", ["scanqueue"], ["serve"])
    sizes = engine.docker(*inside, "cd /opt/scanqueue; du -sm .; du -sm lib/python3.11/site-packages/*")
    print("\nMiB in the image:\n" + "\n".join(sorted(sizes.splitlines(), key=lambda line: int(line.split()[0]))[-40:]))
    parts = {line.split()[1].rpartition("/")[2]: int(line.split()[0]) for line in sizes.splitlines()}
    whole = parts.pop(".")
    torch = sum(parts.get(name, 0) for name in ("torch", "torchvision", "torchvision.libs", "torchgen", "functorch"))
    cuda = sum(parts.get(name, 0) for name in ("nvidia", "triton", "cuda"))
    record_property("image in MiB", f"torch {torch}, CUDA {cuda}, all other packages {whole - torch - cuda}")
    # no suite of tests, no library that only a linker reads, none twice; but every licence
    static = "-name '*.a' ! -path '*/nvidia/*' ! -path '*/triton/*'"
    suites = "-type d -name tests ! -path '*.dist-info/*' ! -path '*/numpy/_core/tests'"
    assert engine.docker(*inside, f"find /opt/scanqueue/lib {static} -o {suites}") == ""
    ours = "cd /opt/scanqueue/lib/python3.11/site-packages; find _gdcm -type f -name 'lib*.so*' -exec md5sum {} +"
    digests = [line.split()[0] for line in engine.docker(*inside, ours).splitlines()]
    assert len(set(digests)) == len(digests) > 10
    assert int(engine.docker(*inside, "find /opt/scanqueue/lib -ipath '*.dist-info/*licen*' -type f | wc -l")) > 100


IMPORTED = """
import ast, importlib, pkgutil
import backend, sampling
ours = [m for p in (backend, sampling) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
ours = [m for m in ours if m.name != "backend.plugin"]  # it runs in a label-studio-ml
names = {m.name for m in ours if ".migrations" not in m.name}
names |= {"matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "numpy.testing"}  # later, by libraries
for m in ours:
    for node in ast.walk(ast.parse(open(m.module_finder.find_spec(m.name).origin).read())):
        if isinstance(node, ast.Import):
            names.update(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
for name in sorted(names - OPTIONAL):
    importlib.import_module(name)
print(len(names))
"""


def test_all_that_our_modules_import_is_in_the_image(engine: Engine) -> None:
    """Also what they import inside functions: an export, a file format, a page."""
    optional = {"playwright.sync_api", "transformers"}  # the demo's pictures, and the extra `sam`
    program = IMPORTED.replace("OPTIONAL", repr(optional))
    inside = ("run", "--rm", "--read-only", "--tmpfs", "/tmp", "--network", "none", "--entrypoint", "python")
    found = engine.docker(*inside, "scanqueue:latest", "-c", program)
    assert int(found.split()[-1]) > 200


@pytest.mark.long
def test_the_list_of_components_is_complete(engine: Engine, tmp_path: Path) -> None:
    """The command of docs/reference/audit.md, in a step of a build, as only these reach a package index."""
    (command,) = re.findall(r"scanqueue:latest -c '(.*?)' > sbom.json", AUDIT, re.S)
    run_it = f"RUN {command} > /tmp/sbom.json".replace("\n", "\\\n")
    (tmp_path / "Dockerfile").write_text(f"FROM scanqueue:latest\n{run_it}\n")
    engine.build("scanqueue:listed", tmp_path)
    cat = ("run", "--rm", "--network", "none", "--entrypoint")
    listed = json.loads(engine.docker(*cat, "cat", "scanqueue:listed", "/tmp/sbom.json"))
    script = "import importlib.metadata as m; print(*(d.name + ' ' + d.version for d in m.distributions()), sep='\\n')"
    installed = engine.docker(*cat, "python", "scanqueue:latest", "-c", script).splitlines()
    assert {"scanqueue", "torch"} <= {line.split()[0] for line in installed}
    assert {f"{c['name']} {c['version']}".lower() for c in listed["components"]} == {line.lower() for line in installed}


@pytest.mark.long
def test_saved_images_are_loaded(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "images.tar"
    engine.docker("save", "redis:7", "postgres:16", "--output", str(file))
    before = engine.inspect("redis:7")["Id"]
    engine.docker("tag", "redis:7", "redis:kept")  # its layers stay for the next build
    engine.docker("rmi", "redis:7")
    engine.docker("load", "--input", str(file))
    assert engine.inspect("redis:7")["Id"] == before
    assert "v=7" in engine.docker("run", "--rm", "--network", "none", "redis:7", "redis-server", "--version")
    engine.docker("rmi", "redis:kept")


@pytest.mark.long
def test_an_upgrade_from_the_last_tag_keeps_everything(
    engine: Engine, scans60: Scans, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tag = os.environ.get("UPGRADE_FROM") or run("git", "describe", "--tags", "--abbrev=0", cwd=ROOT).stdout.strip()
    if not tag:
        pytest.skip("no version has a tag yet; UPGRADE_FROM names any revision to upgrade from")
    source = tmp_path_factory.mktemp("previous")
    assert run("bash", "-c", f"git -c tar.umask=022 archive {tag} | tar -x -C {source}", cwd=ROOT).returncode == 0
    engine.build("scanqueue:previous", source)
    engine.docker("tag", "scanqueue:latest", "scanqueue:new")
    engine.docker("tag", "scanqueue:previous", "scanqueue:latest")
    try:
        with Stack(engine, tmp_path_factory.mktemp("upgraded"), settings=QUICK) as stack:
            stack.up()
            stack.set_up()
            lab, seen = first_round(stack, scans60)
            engine.docker("tag", "scanqueue:new", "scanqueue:latest")
            stack.up()
            new = engine.inspect("scanqueue:new")["Id"]
            assert [engine.inspect(stack.one(name).id)["Image"] for name in ("scanqueue", "worker")] == [new, new]
            continues(stack, lab, seen)
    finally:
        engine.docker("tag", "scanqueue:new", "scanqueue:latest")


KEPT = ("round", "model_version", "queue", "shown", "validation")


def first_round(stack: Stack, scans: Scans) -> tuple[Lab, dict[str, Any]]:
    """A project with 8 labels and a first model, and its status."""
    lab = Lab(stack.studio, scans[:24], extra_params={"cold_start_size": 8, "round_size": 5})
    lab.connect(stack)
    lab.wait_for_round(0, seconds=300)
    lab.label(8)
    lab.wait_for_round(1, seconds=600)
    return lab, stack.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == 8)


def continues(stack: Stack, lab: Lab, seen: dict[str, Any]) -> None:
    """It is where it was, and its next round follows."""
    again = stack.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == seen["labelled"])
    assert {k: again[k] for k in KEPT} == {k: seen[k] for k in KEPT}
    lab.label(5)
    lab.wait_for_round(seen["round"] + 1, seconds=600)
    published_once(lab)
    labelled_once(stack, lab)
    lab.close()


def test_the_first_start_needs_only_a_user_and_a_token(stack: Stack) -> None:
    assert stack.first_doctor.returncode == 1
    assert re.findall(r"^error .*", stack.first_doctor.stdout, re.M) == ["error      No Label Studio token is set."]
    server = stack.one("scanqueue")
    doctor = server.execute("env", "-u", "SCANQUEUE_ENCODER", "scanqueue", "doctor")  # loads the default encoder
    assert doctor.returncode == 0, doctor.stdout
    assert "ImageNet weights, installed with scanqueue" in " ".join(doctor.stdout.split())
    assert "No project is connected yet" in " ".join(doctor.stdout.split())


def test_docker_confines_every_service_as_the_file_says(stack: Stack) -> None:
    ids = {"postgres": "0", "redis": "999", "label-studio": "1001", "scanqueue": "10001", "worker": "10001"}
    for container in stack.all():
        told = stack.engine.inspect(container.id)
        host, ours = told["HostConfig"], container.service in ("scanqueue", "worker")
        assert container.execute("id", "-u").stdout.strip() == ids[container.service]
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "5"}}
        assert host["ReadonlyRootfs"] is (ours or container.service == "redis")
        if host["ReadonlyRootfs"]:
            assert "Read-only file system" in container.execute("touch", "/usr/x").stderr
            assert container.execute("grep", "^CapBnd", "/proc/self/status").stdout.split()[1] == "0" * 16
        # only Label Studio and ours are in the network that has a way out
        inside = {name.rpartition("_")[2] for name in told["NetworkSettings"]["Networks"]}
        assert inside == ({"back"} if container.service in ("postgres", "redis") else {"front", "back"})
        port = {"label-studio": "8080/tcp -> 127.0.0.1:8080\n", "scanqueue": "9090/tcp -> 127.0.0.1:9090\n"}
        assert stack.engine.docker("port", container.id) == port.get(container.service, "")
    server = stack.one("scanqueue")
    for place in ("/opt/scanqueue/x", "/weights/x", "/run/secrets/x"):
        assert "Read-only file system" in server.execute("touch", place).stderr
    assert server.execute("touch", "/data/x").returncode == 0
    assert server.execute("rm", "/data/x").returncode == 0


def test_docker_reports_every_service_healthy_and_the_server_answers_soon(stack: Stack) -> None:
    until = time.monotonic() + 90  # the worker's check runs every 30 s
    while not all(c.state["Health"]["Status"] == "healthy" for c in stack.all()):
        assert time.monotonic() < until, {c.service: c.state["Health"] for c in stack.all()}
        time.sleep(1)
    server = stack.one("scanqueue")
    stack.engine.docker("restart", "--time", "0", server.id)
    began = time.monotonic()
    while True:
        with suppress(httpx.TransportError):
            if stack.http.get("/health", timeout=1).status_code == 200:
                break
        time.sleep(0.05)
        assert time.monotonic() < began + 120, server.log()[-2000:]
    spent = time.monotonic() - began
    fields = Path(f"/proc/{server.state['Pid']}/stat").read_text().rpartition(")")[2].split()
    busy = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system time
    print(f"\nthe server answered {spent:.1f} s after its start, which took {busy:.1f} s of a processor")
    assert busy < 10


def test_packets_that_would_leave_the_machine_are_counted(stack: Stack) -> None:
    """Verifies the counter that the tests below rely on: an address reserved for documentation, without a route."""
    before = stack.unroutable_packets()
    connect = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=3)"
    assert stack.one("scanqueue").execute("python", "-c", connect).returncode == 1
    assert stack.unroutable_packets() > before
    before = stack.unroutable_packets()
    assert stack.one("worker").execute("getent", "hosts", "example.com").returncode == 2
    assert stack.unroutable_packets() > before


def test_the_loop_runs_in_the_stack(stack: Stack, scans60: Scans, record_property: Any) -> None:
    before = stack.unroutable_packets()
    lab = Lab(stack.studio, scans60, extra_params={"cold_start_size": 8, "round_size": 5})
    began = time.monotonic()
    lab.connect(stack)
    lab.wait_for_round(0, seconds=300)
    record_property("seconds from `docker compose up` until all services are healthy", round(stack.seconds_to_start))
    record_property("from connecting a project of 60 scans to its first queue", round(time.monotonic() - began))
    assert stack.one("scanqueue").execute("scanqueue", "doctor", "--project", str(lab.project)).returncode == 0
    cold = lab.label(8)
    assert all(p["result"] == [] for task in cold for p in task["predictions"])
    lab.wait_for_round(1, seconds=600)
    warm = lab.label(7)[2:]  # the annotators may have held the first two since the cold start
    assert all(task["predictions"][-1]["result"] for task in warm)
    lab.wait_for_round(2, seconds=600)
    seen = stack.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == 15)
    assert (seen["phase"], seen["trouble"], seen["problems"]) == ("active", "", [])
    assert seen["shown"]["n"] + sum(r["shown"]["n"] for r in stack.get(f"/api/projects/{lab.project}/rounds")["rounds"])
    published_once(lab)
    labelled_once(stack, lab)
    # nothing tried to reach another machine, not even to resolve a name
    assert stack.unroutable_packets() == before
    server = stack.one("scanqueue")
    saved = server.execute("scanqueue", "backup", "--project", str(lab.project), "/data/chest.zip")
    assert saved.returncode == 0, saved.stderr
    put_back = server.execute("scanqueue", "restore", "/data/chest.zip", "--replace")
    assert put_back.returncode == 0, put_back.stderr
    again = stack.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == 15)
    assert {k: again[k] for k in KEPT} == {k: seen[k] for k in KEPT}
    # the containers are gone, the volumes stay; and one worker more
    stack.compose("down")
    assert stack.engine.docker("ps", "-aq") == ""
    stack.up(*TWO_WORKERS)
    assert [c.number for c in stack.all() if c.service == "worker"] == [1, 2]
    continues(stack, lab, seen)


@pytest.mark.parametrize("total", [40, pytest.param(300, marks=pytest.mark.long)])
def test_twenty_annotators_at_once(stack: Stack, many: Scans, total: int) -> None:
    before = stack.unroutable_packets()
    size = 20
    settings = {"cold_start_size": size, "round_size": size}  # the queue's depth is then 60
    lab = Lab(stack.studio, many[: total + 2 * size], annotators=READERS, extra_params=settings)
    lab.connect(stack)
    lab.wait_for_round(0, seconds=300)
    slow, logged = slow_answers(stack), len(stack.one("label-studio").log())
    # one every 12 s each, for as long as it takes; in the short run they are faster, but need no more than is published
    reading = Reading(lab, total, thinking=THINKING if total <= 3 * size else (8.0, 16.0))
    began = time.monotonic()
    reading.start()
    reading.join()
    spent = time.monotonic() - began
    seen = stack.wait(
        lab.project,
        lambda s: s["job"] is None and s["labelled"] == total and learnt(stack, lab) > total - size,
        seconds=600,
    )
    behind = time.monotonic() - began - spent
    unanswered = re.findall(r"^requests\.exceptions\..*", stack.one("label-studio").log()[logged:], re.M)
    time.sleep(EVERY + 1)  # until the server has stored its counters
    rounds = stack.get(f"/api/projects/{lab.project}/rounds")["rounds"]
    print(
        f"\n{READERS} annotators, {total} labels in {spent:.0f} s, {len(rounds) - 1} rounds after the cold start, "
        f"the last of them {behind:.0f} s after the last label"
    )
    for what, times in (("next", reading.asked), ("submit", reading.submitted)):
        middle, late = np.percentile(times, (50, 99))
        print(f"  {what}: median {middle:.2f} s, p99 {late:.2f} s, slowest {max(times):.2f} s")
    print(f"  masks shown: Dice {seen['shown']['dice']}, validation {seen['validation']}")
    assert reading.twice == []
    assert reading.unpublished == []
    assert unanswered == []
    assert slow_answers(stack) == slow
    published_once(lab)
    labelled_once(stack, lab)
    lab.close()
    assert stack.unroutable_packets() == before


def learnt(stack: Stack, lab: Lab) -> int:
    """The number of labels that the newest model was trained on."""
    models = stack.get(f"/api/projects/{lab.project}/rounds")["models"]
    return int(models[-1]["trained_on"]) if models else 0


def slow_answers(stack: Stack) -> list[str]:
    """Requests from Label Studio that must be answered at once but took scanqueue more than a second."""
    text = stack.http.get("/metrics").text
    return re.findall(r'^scanqueue_http_slow_total\{path="/(?:webhook|setup|health)"\} .*', text, re.M)


@pytest.mark.parametrize("kills", [6, pytest.param(32, marks=pytest.mark.long)])
def test_kills_at_random_moments_lose_and_duplicate_nothing(stack: Stack, many: Scans, kills: int) -> None:
    """SIGKILL to one whole container at a time. Its restart policy starts it again, except after `docker kill`."""
    size = 6
    total, pause, thinking = (4 * size, 5.0, THINKING) if kills < 10 else (24 * size, 10.0, (4.0, 12.0))
    settings = {"cold_start_size": size, "round_size": size, "queue_depth": 6 * size}
    lab = Lab(stack.studio, many[:200], annotators=4, extra_params=settings)
    lab.connect(stack)
    lab.wait_for_round(0, seconds=300)
    rng = random.Random(kills)
    names = [(c.service, c.number) for c in stack.all()]
    order = [*rng.sample(names, len(names)), *rng.choices(names, k=kills - len(names))]
    reading = Reading(lab, total, stubborn=True, thinking=thinking)
    reading.start()
    for n, (service, number) in enumerate(order):
        time.sleep(rng.uniform(0.5, pause))
        container = stack.one(service, number)
        container.wait_healthy(seconds=300)
        if n % 2:
            container.crash()
        else:
            stack.engine.docker("kill", container.id)
            stack.compose("up", "-d", *TWO_WORKERS)
    reading.join()
    stack.wait_healthy(seconds=300)
    stack.wait(lab.project, lambda s: s["job"] is None and learnt(stack, lab) > total - size, seconds=600)
    assert reading.twice == []
    labelled_once(stack, lab, miscounted=sum(service in ("postgres", "label-studio") for service, _ in order))
    published_once(lab)
    found = stack.get(f"/api/projects/{lab.project}/rounds")
    versions = [m["version"] for m in found["models"]]
    assert len(set(versions)) == len(versions)
    learnt_from = [m["trained_on"] for m in found["models"]]
    assert learnt_from == sorted(learnt_from)
    assert [r["round"] for r in found["rounds"]] == sorted({r["round"] for r in found["rounds"]})
    print(f"\n{kills} kills ({dict(Counter(order))}): {total} labels, {len(versions)} models, nothing lost")
    with suppress(ScanqueueError):
        lab.close()


@pytest.mark.long
def test_everything_is_restored_in_a_new_stack_as_the_deployment_page_says(stack: Stack, scans60: Scans) -> None:
    """The last test: an empty stack with the same .env and secrets takes the place of the other."""
    saving, restoring = re.findall(r"^```sh\n(.*?)^```$", PAGE.partition("### Everything")[2], re.M | re.S)
    lab, seen = first_round(stack, scans60)
    stack.shell(saving)
    stack.compose("down", "--volumes")
    stack.up("postgres")  # the others need not have run here before
    postgres = stack.one("postgres")
    in_records = ("psql", "-U", "labelstudio", "-d", "scanqueue", "-c")
    newer = postgres.execute(*in_records, "CREATE TABLE newer ()")  # as a newer version would have left it
    assert newer.returncode == 0, newer.stderr
    stack.shell(restoring)
    stack.wait_healthy()
    assert "does not exist" in postgres.execute(*in_records, "SELECT * FROM newer").stderr
    continues(stack, lab, seen)
