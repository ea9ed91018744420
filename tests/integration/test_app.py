"""`python -m diffusion_lit.app`: what it makes, what it refuses, and the page in a real browser."""

import http.client
import io
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.runs.fast_sampling import speed_up
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.sampling.previews import draw_class_grid, labels_in_rows
from diffusion_lit.web.session import ALL, ImageSession, Request, enlarge
from tests.runs import TINY, address_of, run, start

QUICK = [*TINY, "max_steps=2", "val_every=0", "sample_every=0", "checkpoint_every=2", "sampler.steps=4"]
GOOD = Request("3", 5, 7, "ddim", 4, 1.0)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("tiny")
    run("train", *QUICK, "sampler=ddim", "run_dir=run", cwd=home)
    return home / "run"


@pytest.fixture(scope="module")
def session(tiny_run) -> ImageSession:
    training = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSession(load_model(tiny_run), training)


def load_model(run: Path, precision: str = "auto", **settings: object) -> TrainedModel:
    """The model of a run in a precision, that of the page without one."""
    return speed_up(TrainedModel.from_run(run, **settings), OmegaConf.create({"precision": precision}), 16)


# ------------------------------------------------------------------------------------------ what it makes


def test_images_are_those_of_the_model_and_the_film_ends_on_them(session, tiny_run):
    told = []
    made = session.generate(GOOD, lambda done, steps: told.append((done, steps)))
    assert told == [(k + 1, 4) for k in range(4)]
    sampler = session.model.config["sampler"] | {"steps": 4, "batch_size": 5}
    model = load_model(tiny_run, sampler=sampler)
    assert torch.equal(made.images, model.generate([3] * 5, image_seeds(7, 5)))
    assert len(made.frames) == 4
    assert np.array_equal(tile(made.frames[-1], 0, 0, 4), made.images[0, 0].numpy())
    assert np.array_equal(tile(made.frames[-1], 1, 0, 4), made.images[4, 0].numpy())
    assert session.model.config["guidance_scale"] == 1.0  # nothing of a request stays


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_sample_makes_the_same_images_in_the_same_precision(tiny_run, tmp_path, precision):
    made = ImageSession(load_model(tiny_run, precision)).generate(GOOD)
    settings = ["classes=3", "num_images=5", "seed=7", "sampler.batch_size=5", "npy=true", f"precision={precision}"]
    run("sample", f"run={tiny_run}", *settings, "out=out", cwd=tmp_path)
    assert np.array_equal(np.load(tmp_path / "out" / "images.npy"), made.images.permute(0, 2, 3, 1).numpy())


def test_settings_of_a_request_count(session):
    whole = session.generate(GOOD).images
    for change in ({"label": "4"}, {"seed": 8}, {"steps": 3}, {"sampler": "euler_a"}, {"guidance_scale": 4.0}):
        assert not torch.equal(whole, session.generate(Request(**GOOD.__dict__ | change)).images), change
    assert torch.equal(whole, session.generate(GOOD).images)
    made, names = session.generate(Request(ALL, 16, 0, "ddim", 1, 1.0)), session.model.class_names
    assert len(made.images) == 16
    named = enlarge(draw_class_grid(made.images, labels_in_rows(range(len(names)), 16), names))
    assert np.array_equal(np.array(made.frames[-1]), np.array(named))  # each class has its name


def test_a_mix_leads_from_the_images_of_a_seed_to_those_of_the_next(session):
    ends = [session.generate(Request("3", 2, seed, "ddim", 4, 1.0)).images.int() for seed in (7, 8)]
    mixed = [session.generate(Request("3", 2, 7, "ddim", 4, 1.0, mix)).images.int() for mix in (0, 0.02, 0.98, 1.0)]
    assert torch.equal(mixed[0], ends[0])
    assert (mixed[3] - ends[1]).abs().max() <= 1  # rounding
    near, far = ((mixed[1] - end).abs().float().mean() for end in ends)
    assert 0 < near < far / 4
    near, far = ((mixed[2] - end).abs().float().mean() for end in ends[::-1])
    assert 0 < near < far / 4


def test_what_is_drawn_while_a_slider_moves_is_the_last_frame(session):
    for request in (GOOD, Request(ALL, 16, 0, "ddim", 2, 1.0, 0.5)):
        assert np.array_equal(np.array(session.draw(request)), np.array(session.generate(request).frames[-1]))


def test_neighbours_are_the_nearest(session):
    images = session.training[[5, 9]]
    picture = session.find_neighbors(images)
    middle = picture.width // 2
    left, right = picture.crop((0, 0, middle - 6, picture.height)), picture.crop((middle + 6, 0, *picture.size))
    for half, image in ((left, images[0, 0]), (right, images[1, 0])):
        assert np.array_equal(tile(half, 0, 0, 5), image.numpy())
        assert np.array_equal(tile(half, 0, 1, 5), image.numpy())  # a training image is nearest to itself
        assert not np.array_equal(tile(half, 0, 2, 5), image.numpy())


def tile(picture: Image.Image, row: int, column: int, columns: int) -> np.ndarray:
    """An image of 8 px in a grid that shows it eight times as large with gaps of 2, all of it enlarged again."""
    zoom = picture.width / (columns * 66 + 2)
    down, across = ([int((2 + 66 * place + 8 * k + 4) * zoom) for k in range(8)] for place in (row, column))
    return np.array(picture.convert("L"))[np.ix_(down, across)]


@pytest.mark.parametrize("change", [
    {"label": "eleven"}, {"label": None}, {"label": "../../etc/passwd"}, {"count": 0}, {"count": 17}, {"count": True},
    {"count": 2.5}, {"count": None}, {"count": 10**9}, {"seed": -1}, {"seed": 2**32}, {"seed": "1"}, {"steps": 0},
    {"steps": 251}, {"steps": float("nan")}, {"sampler": "heun"}, {"sampler": "../ddim"}, {"sampler": ["ddim"]},
    {"guidance_scale": -1.0}, {"guidance_scale": 21.0}, {"guidance_scale": float("nan")}, {"guidance_scale": "2"},
    {"mix": -0.1}, {"mix": 1.5}, {"mix": "half"},
])  # fmt: skip
def test_what_cannot_be_made_is_a_message(session, change):
    with pytest.raises(ValueError, match=": "):
        session.generate(Request(**GOOD.__dict__ | change))


# ------------------------------------------------------------------------------------------ the server


@pytest.fixture(scope="module")
def address(tiny_run, tmp_path_factory):
    pytest.importorskip("gradio")
    process = start("app", f"run={tiny_run}", "port=0", cwd=tmp_path_factory.mktemp("cwd"))
    yield address_of(process)
    process.terminate()
    printed = process.communicate(timeout=30)[0]
    assert process.returncode == 143, printed
    assert "Traceback" not in printed, printed
    assert "stopped; the page is closed" in printed
    assert re.search(r"precision  (bf16-mixed|32-true): .+ \(precision=auto\)", printed), printed
    assert "saved" not in printed


def test_it_listens_to_this_machine_alone(address):
    port = f"{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for file in ("/proc/net/tcp", "/proc/net/tcp6") if Path(file).exists()
            for line in Path(file).read_text().splitlines()[1:]]  # fmt: skip
    listening = {row[1].partition(":")[0] for row in rows if row[1].endswith(f":{port}") and row[3] == "0A"}
    assert listening == {"0100007F"}  # 127.0.0.1


def test_no_file_of_the_machine_can_be_read(address, tiny_run):
    secrets = [(tiny_run / "config.yaml").read_bytes(), Path("/etc/hostname").read_bytes()]
    routes = ("/gradio_api/file=", "/file=", "/file/", "/gradio_api/stream/", "/static/")
    for place in (str(tiny_run / "config.yaml"), "/etc/hostname", "../../etc/hostname", "config.yaml"):
        once = urllib.parse.quote(place, safe="")
        ways = [place, once, place.replace("/", "%2f"), place.replace("/", "%5c"), f"/../..{place}", f"{place}%00.png"]
        for path in [route + way for route in routes for way in (*ways, urllib.parse.quote(once))]:
            try:
                with urllib.request.urlopen(address + path, timeout=10) as answer:
                    found = answer.read()
            except urllib.error.HTTPError as error:
                found = error.read()
            assert not any(secret in found for secret in secrets), path


def called(address: str, *values: object) -> str:
    """The events of a call of the page's function, as a program would send it."""
    request = urllib.request.Request(
        f"{address}/gradio_api/call/generate",
        json.dumps({"data": values}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        event = json.loads(answer.read())["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/generate/{event}", timeout=60) as answer:
        return answer.read().decode()


def test_a_program_gets_the_images_of_the_session(address, session):
    events = called(address, "3", 5, 7, "ddim", 4, 1, 0)
    outputs = json.loads(events.partition("event: complete\ndata: ")[2].splitlines()[0])
    with urllib.request.urlopen(outputs[0]["url"], timeout=10) as file:
        shown = np.array(Image.open(io.BytesIO(file.read())))
    assert np.array_equal(shown, np.array(session.generate(GOOD).frames[-1]))


@pytest.mark.parametrize("values", [
    ("3", 1e9, 0, "ddim", 4, 1, 0), ("3", 2, -5, "ddim", 4, 1, 0), ("eleven", 2, 0, "ddim", 4, 1, 0),
    ("3", 2, 0, "../../ddim", 4, 1, 0), ("3", 2, 0, "ddim", 100000, 1, 0), ("3", 2, "x", "ddim", 4, 1, 0),
    ("3", 2, 0, "ddim", 4, 1, "x"), (None,) * 7, ("3", 2, 0, ["ddim"], 4, 1, 0), ("3", 2, 0, {"a": 1}, 4, 1, 0), (),
    ("3", 2), (["3", 2, 0, "ddim", 4, 1, 0],),
])  # fmt: skip
def test_bad_values_of_a_program_are_refused_and_the_page_goes_on(address, values):
    events = called(address, *values)
    assert "event: error" in events
    assert json.loads(events.partition("data: ")[2].splitlines()[0])["error"]  # a message, not null
    assert "event: complete" not in events
    assert "event: complete" in called(address, "3", 2, 0, "ddim", 2, 1, 0)


def test_bad_values_for_the_events_of_sliders_are_refused(address):
    """The page alone sends these events; a program that does is answered by a message."""
    with urllib.request.urlopen(f"{address}/config", timeout=10) as config:
        events = json.loads(config.read())["dependencies"]
    for event in events[1:]:
        count = len(event["inputs"])
        for values in (["x"] * count, [True] + [[1]] * (count - 1), [True] + [-(10**9)] * (count - 1), []):
            session = f"{event['id']} {values}".encode().hex()
            body = {"fn_index": event["id"], "data": values, "session_hash": session}
            request = urllib.request.Request(
                f"{address}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(request, timeout=10).close()
            stream = f"{address}/gradio_api/queue/data?session_hash={session}"
            with urllib.request.urlopen(stream, timeout=60) as told:
                lines = [line for line in told.read().decode().splitlines() if "process_completed" in line]
            assert json.loads(lines[0].removeprefix("data: "))["output"]["error"], (event["id"], values)


def answer(address: str, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, str]:
    """Status and text of a request with exactly these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", int(address.rpartition(":")[2]), timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body or None)
    reply = connection.getresponse()
    return reply.status, reply.read().decode(errors="replace")


def test_only_a_browser_of_this_machine_that_has_the_page_open_is_answered(address):
    port = address.rpartition(":")[2]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost", "LOCALHOST:9000"):
        assert answer(address, "/config", Host=host)[0] == 200, host
        assert answer(address, "/config", Host=host, Origin=f"http://{host}")[0] == 200, host
    foreign = ["evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "", "localhost.", "[::1"]
    for host in (*foreign, "0.0.0.0", "127.0.0.1@evil.example", "evil.example#localhost", "192.168.0.1"):
        status, text = answer(address, "/config", Host=host)
        assert (status, "Host must be" in text) == (403, True), host
    assert answer(address, "/config")[0] in (400, 403)  # without a Host
    host = f"localhost:{port}"
    for origin in (
        "http://evil.example",
        "null",
        f"http://127.0.0.1:{port}",
        "http://localhost:1",
        "http://localhost",
        "file://",
    ):
        assert answer(address, "/config", Host=host, Origin=origin)[0] == 403, origin
        join = {"Host": host, "Origin": origin, "Content_Length": "2", "Content_Type": "application/json"}
        assert answer(address, "/gradio_api/queue/join", "POST", b"{}", **join)[0] == 403, origin


def test_nothing_can_be_written_to_this_machine(address):
    host, mark = address.removeprefix("http://"), "--x"
    body = (f'{mark}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + "x" * 900).encode()
    body += f"\r\n{mark}--\r\n".encode()
    form = {"Host": host, "Content_Length": str(len(body)), "Content_Type": f"multipart/form-data; boundary={mark[2:]}"}
    paths = [
        "upload",
        "upload?upload_id=1",
        "component_server",
        "run/generate",
        "stream/1",
        "call/generate/../../upload",
    ]
    for path in ("/upload", "/login", *[f"/gradio_api/{path}" for path in paths]):
        status, text = answer(address, path, "POST", body, **form)
        assert (status, "takes no files" in text) == (403, True), path
    assert answer(address, "/gradio_api/deep_link?session_hash=x", Host=host)[0] == 403
    for method in ("PUT", "DELETE", "PATCH"):
        assert answer(address, "/gradio_api/upload", method, body, **form)[0] == 403
    for size in ({}, {"Content_Length": str(2**20)}, {"Content_Length": "-1"}, {"Transfer_Encoding": "chunked"}):
        assert answer(address, "/gradio_api/call/generate", "POST", Host=host, **size)[0] in (400, 403), size
    assert "event: complete" in called(address, "3", 2, 0, "ddim", 2, 1, 0)


def test_the_oldest_files_are_removed(tmp_path):
    pytest.importorskip("gradio")
    from diffusion_lit.web.interface import remove_oldest_files

    for k in range(6):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "a.png").write_bytes(b"x" * 100)
        os.utime(tmp_path / str(k) / "a.png", (k, k))
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    remove_oldest_files(tmp_path, 399)  # the link has some bytes too
    assert sorted(path.parent.name for path in tmp_path.rglob("*.png")) == ["3", "4", "5"]
    remove_oldest_files(tmp_path, 0)
    assert list(tmp_path.rglob("*.png")) == []


@pytest.mark.parametrize(
    ("name", "values"), [("draw", (True, *asdict(GOOD).values())), ("select_frame", ([Image.new("L", (1, 1))], 0))]
)
def test_whatever_draws_an_image_removes_the_oldest_files(session, tmp_path, name, values):
    pytest.importorskip("gradio")
    from diffusion_lit.web.interface import MAX_FILES, build_page

    (function,) = {one.fn for one in build_page(session, session.model, tmp_path, str).fns.values() if one.name == name}
    with open(tmp_path / "old.png", "wb") as file:
        file.truncate(MAX_FILES + 1)
    function(*values)
    assert not (tmp_path / "old.png").exists()


# ------------------------------------------------------------------------------------------ the browser


def opened(browser, address):
    page = browser.new_context(accept_downloads=True).new_page()
    page.goto(address)
    page.wait_for_selector("button:has-text('Generate')")
    return page


def generated(page, before: str = "") -> str:
    """Press the button; the address of the picture that comes."""
    page.click("button:has-text('Generate')")
    page.wait_for_function(
        "before => { const i = document.querySelector('img[src*=\"/file=\"]'); return i && i.src != before }",
        arg=before, timeout=60_000,
    )  # fmt: skip
    return page.get_attribute('img[src*="/file="]', "src")


def downloaded(page, name: str, path: Path) -> Image.Image:
    with page.expect_download() as waiting:
        page.click(f"button:has-text('{name}')")
    waiting.value.save_as(path)
    return Image.open(path)


def test_two_visitors_generate_change_the_class_and_download(browser, address, session, tmp_path):
    one, other = opened(browser, address), opened(browser, address)
    for page, label in ((one, "3"), (other, "8")):
        page.get_by_label("class").first.click()
        page.get_by_role("option", name=label, exact=True).click()
    one.click("button:has-text('Generate')")
    other.click("button:has-text('Generate')")
    for page in (one, other):
        page.wait_for_selector('img[src*="/file="]', timeout=60_000)
    for page, label in ((one, "3"), (other, "8")):  # each has his own
        made = session.generate(Request(label, 16, 0, "ddim", 4, 1.0))
        picture = downloaded(page, "PNG", tmp_path / f"{label}.png")
        assert np.array_equal(np.array(picture), np.array(made.frames[-1]))
        film = downloaded(page, "GIF", tmp_path / f"{label}.gif")
        assert film.n_frames == 4
    before = one.get_attribute('img[src*="/file="]', "src")
    one.get_by_label("seed", exact=True).fill("5")
    assert generated(one, before) != before
    assert not one.query_selector("text=Error")


def test_a_value_that_is_none_is_told_and_the_page_goes_on(browser, address):
    page = opened(browser, address)
    page.get_by_label("seed", exact=True).fill("-3")
    page.click("button:has-text('Generate')")
    page.wait_for_selector("text=seed: must be an integer from 0", timeout=60_000)  # no click counts before the answer
    page.get_by_label("seed", exact=True).fill("3")
    assert generated(page)


def test_the_slider_shows_the_way_from_noise(browser, address):
    page = opened(browser, address)
    first = generated(page)
    slider = page.get_by_label("denoising step").first
    slider.fill("0")
    slider.press("Enter")
    page.wait_for_function(
        "before => document.querySelector('img[src*=\"/file=\"]').src != before", arg=first, timeout=20_000
    )


def test_the_page_draws_while_a_slider_moves_if_it_is_asked_to(browser, address, session, tmp_path):
    page = opened(browser, address)
    first = generated(page)
    mix = page.get_by_label("mix with the next seed").first
    mix.fill("0.3")
    mix.press("Enter")
    page.wait_for_timeout(500)
    assert page.get_attribute('img[src*="/file="]', "src") == first
    page.get_by_label("draw while a slider moves").check()
    mix.fill("0.5")
    mix.press("Enter")
    page.wait_for_function(
        "before => document.querySelector('img[src*=\"/file=\"]').src != before", arg=first, timeout=20_000
    )
    with urllib.request.urlopen(page.get_attribute('img[src*="/file="]', "src")) as file:
        shown = np.array(Image.open(io.BytesIO(file.read())).convert("RGB"))
    drawn = np.array(session.draw(Request(ALL, 16, 0, "ddim", 4, 1.0, 0.5)).convert("RGB"))
    assert np.array_equal(shown, drawn)
    # the file is that of the image that is shown, and the film of another image cannot be had
    assert np.array_equal(np.array(downloaded(page, "PNG", tmp_path / "drawn.png").convert("RGB")), drawn)
    assert page.locator("button:has-text('GIF')").is_disabled()
    generated(page, page.get_attribute('img[src*="/file="]', "src"))
    assert page.locator("button:has-text('GIF')").is_enabled()


def test_without_gradio_it_says_what_to_install(tiny_run, tmp_path):
    prelude = (
        "import importlib.util as u; find = u.find_spec; u.find_spec = lambda name: name != 'gradio' and find(name)"
    )
    assert 'pip install "diffusion_lit[app]"' in run("app", f"run={tiny_run}", cwd=tmp_path, code=2, prelude=prelude)
