"""The page of `ftlit demo` shows, for a picture that is dropped, classes, class map and nearest training images."""

import io
import json
import re
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from queue import Queue
from urllib.request import Request, urlopen

import pytest
import torch
from browser import CHROMIUM, browser_command
from PIL import Image
from run_folders import CLASSES, run_of

from ftlit import UserError, load
from ftlit.data.dataset import Examples
from ftlit.data.images import read_image
from ftlit.demo.about import with_about
from ftlit.demo.answers import NEAREST, answer, train_pictures
from ftlit.demo.server import application, check_packages, serve
from ftlit.models.heads import MLPHead
from ftlit.run_folder import write_result

pytestmark = pytest.mark.e2e


def picture(number):
    generator = torch.Generator().manual_seed(number)
    return Image.fromarray(torch.randint(256, (40, 50, 3), generator=generator, dtype=torch.uint8).numpy())


def bytes_of(image):
    image.save(written := io.BytesIO(), "PNG")
    return written.getvalue()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return load(run_of(tmp_path_factory.mktemp("runs") / "mine", "glyph", {}))


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Nine training images, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("train")
    for number in range(8):
        picture(number).save(folder / f"{number}.png")
    (folder / "8.png").write_text("no image")
    return Examples(sorted(folder.iterdir()), [(number % 3,) for number in range(9)], read_image)


def test_the_nearest_training_image_of_a_training_image_is_itself(network, train):
    pictures = train_pictures(network, train)
    assert list(pictures.places) == list(range(8))
    for number in (0, 5):
        found = answer(network, pictures, bytes_of(picture(number)))
        assert len(found["nearest"]) == NEAREST and found["nearest"][0]["label"] == CLASSES[number % 3]
        prediction = network(picture(number))
        assert [name for name, _ in found["classes"]] == list(prediction.probabilities)
        assert found["map"].startswith("data:image/png;base64,")


def test_a_head_without_a_class_map_and_a_run_without_training_images_have_an_answer(tmp_path):
    network = load(run_of(tmp_path / "mlp", "glyph", {}, MLPHead, hidden=[4]))
    found = answer(network, None, bytes_of(picture(1)))
    assert found["map"] is None and found["nearest"] == [] and len(found["classes"]) == 3
    assert answer(network, None, b"no image") == {"error": "this file is not an image of a known format"}


def test_a_missing_package_and_a_port_that_is_taken_are_one_line_errors(network, monkeypatch):
    monkeypatch.setattr("ftlit.demo.server.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'ftlit demo needs starlette and uvicorn: pip install "ftlit\[demo\]"'):
        check_packages()
    pytest.importorskip("uvicorn")
    with (
        running(application(network, None, "run")) as port,
        pytest.raises(UserError, match=f"port {port} cannot be used .* give another --port"),
    ):
        serve(network, None, "run", port)


@contextmanager
def running(app):
    """Serve an application in a thread; its port."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def test_the_server_answers_its_own_page_only(network, train):
    pytest.importorskip("starlette")
    app = application(network, train, "run")
    app.state.pictures.wait()
    with running(app) as port:
        url = f"http://127.0.0.1:{port}"
        page = urlopen(url).read().decode()
        assert "Drop a picture here" in page and not re.search(r"https?://", page)
        found = json.loads(urlopen(Request(f"{url}/predict", data=bytes_of(picture(2)))).read())
        assert found["classes"] and found["nearest"] and not found["pending"]
        with pytest.raises(OSError, match="400"):  # the name of another host: a page of that host would read the answer
            urlopen(Request(url, headers={"Host": "example.com"}))


def test_the_page_answers_while_the_features_of_the_training_images_are_computed(network, train):
    pytest.importorskip("starlette")
    ready = threading.Event()

    def load_late(path):
        assert path == train.sources[0] or ready.wait(60)
        return read_image(path)

    app = application(network, replace(train, load=load_late), "run")
    with running(app) as port:
        request = Request(f"http://127.0.0.1:{port}/predict", data=bytes_of(picture(2)))
        while (found := json.loads(urlopen(request).read()))["pending"] != "1 of 9":
            time.sleep(0.01)
        assert found["classes"] and not found["nearest"]
        ready.set()
        app.state.pictures.wait()
        found = json.loads(urlopen(request).read())
        assert found["nearest"] and found["pending"] == ""


def test_a_page_that_is_closed_computes_no_more_features(network, train):
    pytest.importorskip("starlette")
    begun, ready, read = threading.Event(), threading.Event(), []

    def load_late(path):
        read.append(path)
        begun.set()
        assert ready.wait(60)
        return read_image(path)

    app = application(network, replace(train, load=load_late), "run")
    assert begun.wait(60)
    threading.Timer(0.1, ready.set).start()
    app.state.pictures.stop()
    assert len(read) == 1


def test_the_page_says_that_there_is_no_class_map_only_where_there_is_none():
    page = files("ftlit.demo").joinpath("demo.html").read_text()
    assert "no class map" not in page.partition("<script>")[0]
    assert 'found.map ? "" : "This network has no class map' in page


def test_the_page_states_data_network_classes_and_accuracy(network, train, tmp_path):
    page = files("ftlit.demo").joinpath("demo.html").read_text()
    shown = with_about(page, tmp_path / "monday", network, None)
    assert "<title>monday: glyph</title>" in shown and "<h1>monday: glyph</h1>" in shown and "ftlit demo</" not in shown
    assert "Classes: ants, bees, wasps. One of these classes is always named" in shown and "test images is not known." in shown
    write_result(tmp_path, {"test/accuracy": 0.9, "test/accuracy_low": 0.744, "test/accuracy_high": 0.965})
    photos = replace(train, contents=[Path("/data/photos/ants/1.png"), Path("/data/photos/bees/2.png")])
    shown = with_about(page, tmp_path, network, photos)
    assert "<h1>photos: glyph</h1>" in shown and "Accuracy on test images: 0.9000 (95 % interval 0.744 to 0.965)." in shown


def test_the_page_says_why_no_training_images_are_shown_and_that_a_final_run_was_not_tested(network, train, tmp_path):
    pytest.importorskip("starlette")
    unreadable = Examples(train.sources[-1:], [(0,)], read_image)
    for given, why, says in ((None, "there is no photos", "there is no photos."), (unreadable, "", "none of them can be read.")):
        app = application(network, given, "run", why)
        if app.state.pictures:
            app.state.pictures.wait()
        with running(app) as port:
            assert f"No training images are shown: {says}" in urlopen(f"http://127.0.0.1:{port}").read().decode()
    assert "No training images" not in with_about('<p id="about"></p>', "run", network, train)
    write_result(tmp_path, {"fitted_on": "train + val + test", "images": 40})
    assert "Accuracy: not measured: this network was trained on all images" in with_about('<p id="about"></p>', tmp_path, network, None)


def test_a_training_image_that_was_removed_since_is_left_out(network, tmp_path):
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
    pictures = train_pictures(network, Examples(sorted(tmp_path.iterdir()), [(0,)] * 6, read_image))
    (tmp_path / "2.png").unlink()
    assert len(answer(network, pictures, bytes_of(picture(2)))["nearest"]) == NEAREST - 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser_a_dropped_picture_shows_classes_map_and_nearest_images(network, train, tmp_path):
    routing, responses = pytest.importorskip("starlette.routing"), pytest.importorskip("starlette.responses")
    app = application(network, train, "run")
    app.state.pictures.wait()
    drop = """<script>addEventListener("load", async () => {
        const canvas = document.createElement("canvas"); canvas.width = 60; canvas.height = 40;
        canvas.getContext("2d").fillRect(10, 10, 20, 20);
        const blob = await new Promise(done => canvas.toBlob(done)), data = new DataTransfer();
        data.items.add(new File([blob], "mine.png"));
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", {bubbles: true, dataTransfer: data}));
        for (let i = 0; i < 400 && document.getElementById("answer").hidden; i++) await new Promise(done => setTimeout(done, 50));
        await Promise.all([...document.images].map(image => image.decode().catch(() => 0)));
        const found = {widths: [...document.images].map(image => image.naturalWidth),
            rows: [...document.querySelectorAll("#classes tr")].map(row => row.cells[0].textContent),
            labels: [...document.querySelectorAll("#nearest figcaption")].map(text => text.textContent)};
        await fetch("/found", {method: "POST", body: JSON.stringify(found)}); });</script>"""
    sent = Queue()

    async def found_route(request):
        sent.put(await request.json())
        return responses.Response()

    with running(app) as port:
        page = urlopen(f"http://127.0.0.1:{port}").read().decode()
        app.router.routes.append(routing.Route("/try", lambda request: responses.HTMLResponse(page + drop)))
        app.router.routes.append(routing.Route("/found", found_route, methods=["POST"]))
        browser = subprocess.Popen(browser_command(tmp_path, f"http://127.0.0.1:{port}/try"), stderr=subprocess.DEVNULL)
        try:
            found = sent.get(timeout=120)
        finally:
            browser.kill()
            browser.wait()
    assert sorted(found["rows"]) == CLASSES and len(found["labels"]) == NEAREST and set(found["labels"]) <= set(CLASSES)
    assert len(found["widths"]) == 2 + NEAREST and all(width >= 32 for width in found["widths"])
