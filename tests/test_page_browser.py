"""The server's page in a real browser, against the real server with a small trained model: `pytest -m slow`."""

import csv
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser_pages import (
    DESK,
    PHONE,
    OpenPage,
    add,
    change_answers,
    drop,
    texts,
    wait_until_done,
    write_picture,
)

pytestmark = pytest.mark.slow
NOTICE = "Research use only. Not a medical device."


def test_an_image_gets_its_answer(open_page: OpenPage, pictures: Path, trained: Path) -> None:
    page = open_page()
    assert "Learned from" in page.inner_text("#model-summary")
    add(page, pictures / "lesion-0.png")
    words = page.inner_text(".headline")
    assert re.search(r"Most probable\n+(benign|malignant|melanoma|nevus)", words)
    assert re.search(r"(Positive|Negative) at sensitivity 0.95", words)
    assert "Prediction set." in words
    assert re.search(r"Sensitivity \d+\.\d % .*n = \d+", re.sub(r"\s+", " ", page.inner_text(".rates")))
    assert page.inner_text(".bar .notice") == NOTICE
    frame = page.locator(".picture-frame").bounding_box()
    assert frame["width"] / frame["height"] == pytest.approx(96 / 72, rel=0.02), "not distorted"


def test_the_bars_are_in_the_order_of_the_model_whatever_is_most_probable(
    open_page: OpenPage, pictures: Path
) -> None:
    page = open_page()
    classes = page.evaluate("fetch('/v1/model').then((answer) => answer.json()).then((model) => model.classes)")
    names = [one["name"] for one in classes]
    for number, p in enumerate(([0.9, 0.1], [0.2, 0.8])):
        change_answers(page, set_probabilities(p))
        add(page, pictures / f"lesion-{number}.png")
        page.click(f"#image-list > li:nth-child({number + 1}) .image-button")
        assert texts(page, ".bar-row .name b") == names
        assert texts(page, ".bar-row .percent") == [f"{100 * one:.1f} %" for one in p]
        widths = page.eval_on_selector_all(".track > span", "all => all.map((one) => one.style.width)")
        assert [float(width[:-1]) for width in widths] == pytest.approx([100 * one for one in p])
        page.unroute("**/v1/predict")


def set_probabilities(p: list[float]) -> Callable[[dict[str, Any]], None]:
    """Return a change of an answer to these calibrated probabilities."""

    def change(document: dict[str, Any]) -> None:
        for one, value in zip(document["images"][0]["classes"], p, strict=True):
            one["calibrated_probability"] = value

    return change


def test_the_answer_is_that_of_predict(open_page: OpenPage, pictures: Path, trained: Path) -> None:
    import dermkit as dk

    page = open_page()
    add(page, pictures / "lesion-0.png")
    model = dk.load_model(trained / "model", device="cpu")
    (one,) = model.predict_images([str(pictures / "lesion-0.png")], target="sensitivity=.95")
    assert one.decisions is not None
    percentages = [float(re.sub(r"[^\d.]", "", text)) for text in texts(page, ".bar-row .percent")]
    assert percentages == pytest.approx([100 * p for p in one.decisions.probabilities.values()], abs=0.06)
    assert ("Positive at" in page.inner_text(".decision")) == one.decisions.positive


def test_images_are_dropped_pasted_and_taken_from_a_folder(
    open_page: OpenPage, pictures: Path, tmp_path: Path
) -> None:
    page = open_page()
    data = (pictures / "lesion-0.png").read_bytes()
    drop(page, [("dropped.png", data)])
    wait_until_done(page, 1)
    page.evaluate(
        """(bytes) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
          document.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }));
        }""",
        list(data),
    )
    wait_until_done(page, 2)
    folder = tmp_path / "folder"
    shutil.copytree(pictures, folder / "inner")
    (folder / "notes.txt").write_text("no image")
    write_picture(folder / ".hidden" / "not-this.png")
    page.set_input_files("#image-folder", str(folder))
    assert "4 images of the folder; 2 other files left out" in page.inner_text("#intake-note")
    wait_until_done(page, 6)
    names = texts(page, ".image-name")
    assert names == ["dropped.png", "image.png", *sorted(names[2:], key=names.index)]
    assert sorted(names[2:]) == ["broken.jpg", "lesion-0.png", "lesion-1.png", "lesion-2.png"]
    assert page.get_attribute(".image-item:last-child .image-name", "title").startswith("folder/inner/")
    assert page.locator("#drop-veil").is_hidden()


def test_the_camera_takes_a_photograph(open_page: OpenPage) -> None:
    page = open_page(permissions=["camera"])
    page.click("#open-camera")
    page.click("#take-photograph", timeout=30_000)
    page.wait_for_selector("text=1 photograph taken")
    page.keyboard.press("Escape")
    wait_until_done(page, 1)
    assert texts(page, ".image-name") == ["photograph-1.jpg"]
    assert page.evaluate("document.querySelector('#camera-video').srcObject.active") is False, "the camera is off"
    page.wait_for_selector(".headline")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("NotAllowedError", "did not allow the camera"),
        ("NotFoundError", "No camera was found"),
        ("NotReadableError", "in use by another program"),
        ("", "only to pages over https"),
    ],
)
def test_a_camera_that_is_refused_is_explained(open_page: OpenPage, error: str, words: str) -> None:
    page = open_page()
    refuse = f"async () => {{ throw new DOMException('', '{error}'); }}"
    devices = f"{{ getUserMedia: {refuse} }}" if error else "undefined"
    page.evaluate(f"Object.defineProperty(navigator, 'mediaDevices', {{ value: {devices} }})")
    page.click("#open-camera")
    page.wait_for_selector(f"text={words}")
    assert page.is_disabled("#take-photograph")


def test_a_broken_file_is_refused_with_words_and_the_others_are_scored(
    open_page: OpenPage, pictures: Path
) -> None:
    page = open_page()
    add(page, pictures / "broken.jpg", pictures / "lesion-0.png")
    assert "This image was refused" in page.inner_text(".problem")
    assert page.inner_text(".picture") == "No picture to show."
    assert re.search(r"cut short|damaged|not an image", page.inner_text(".problem"))
    assert "1 not scored" in page.inner_text("#sitting-counts")
    page.click("#step-next")
    page.wait_for_selector(".headline")


def test_a_picture_that_this_browser_cannot_show_is_scored_and_shown_with_its_map(
    open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page()
    add(page, write_picture(tmp_path / "scan.tif"))
    assert "cannot show this format" in page.inner_text(".picture")
    page.wait_for_selector(".headline")
    page.click("#map-toggle")
    page.wait_for_selector(".picture-frame img.map", timeout=120_000)
    assert page.locator(".picture-frame img").count() == 2


def test_the_heat_map_has_an_opacity_and_a_choice_of_class(open_page: OpenPage, pictures: Path) -> None:
    page = open_page()
    add(page, pictures / "lesion-0.png")
    page.click("#map-toggle")
    page.wait_for_selector("img.map", timeout=120_000)
    opacity = "document.querySelector('img.map').style.opacity"
    assert page.evaluate(opacity) == "0.6"
    page.focus("#map-opacity")
    page.keyboard.press("End")
    assert page.evaluate(opacity) == "1" and page.inner_text(".opacity output") == "100 %"
    first = page.get_attribute("img.map", "src")
    other = page.evaluate("[...document.querySelector('#map-class').options].find((one) => !one.selected).value")
    page.select_option("#map-class", other)
    page.wait_for_selector(f"img.map:not([src='{first}'])", timeout=120_000)
    assert f"Evidence for {other}" in page.inner_text(".legend")
    assert page.evaluate(opacity) == "1", "the opacity stays as it was chosen"
    assert (
        page.get_attribute("img.map", "alt")
        == f"Heat map: Evidence for {other}, relative to the strongest in this image"
    )
    page.click("#map-toggle")
    assert page.locator("img.map").count() == 0
    assert "Nearest training cases" in page.inner_text(".answer-more")


def test_the_class_that_was_chosen_stays_where_the_first_map_brings_the_cases(
    open_page: OpenPage, pictures: Path
) -> None:
    page = open_page()
    add(page, pictures / "lesion-0.png")
    other = page.evaluate("[...document.querySelector('#map-class').options].find((one) => !one.selected).value")
    page.select_option("#map-class", other)
    page.wait_for_selector("img.map", timeout=120_000)
    page.wait_for_selector(".cases")
    assert page.input_value("#map-class") == other
    assert f"Evidence for {other}" in page.inner_text(".legend")


def test_an_image_of_the_training_is_marked(open_page: OpenPage, trained: Path, binary: Path) -> None:
    with (trained / "split.csv").open(encoding="utf-8") as stream:
        row = next(row for row in csv.DictReader(stream) if row["split"] == "train")
    (path,) = (binary.parent / "images").rglob(f"{row['image_id'].split('/')[-1]}.*")
    page = open_page()
    add(page, path)
    assert "The model has seen this image" in page.inner_text(".warnings")


def test_a_blurred_image_and_one_unlike_the_training_are_marked(open_page: OpenPage, tmp_path: Path) -> None:
    from PIL import Image, ImageFilter

    write_picture(tmp_path / "sharp.png", size=(400, 300))
    Image.open(tmp_path / "sharp.png").filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "blurred.png")
    page = open_page()
    add(page, tmp_path / "sharp.png")
    assert "blurred" not in page.inner_text("#answer").lower()
    add(page, tmp_path / "blurred.png")
    page.click("#step-next")
    assert "The image is blurred" in page.inner_text(".warnings")
    answer = {"distance": 1.5, "p_value": 0.01, "outside_training_distribution": True}
    change_answers(page, lambda document: document["images"][0].update(distribution=answer))
    add(page, write_picture(tmp_path / "outside.png"))
    page.click("#step-next")
    assert "Unlike the training images" in page.inner_text(".warning.serious")
    assert "Nothing is guaranteed of it" in page.inner_text(".set")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: one["decisions"].update(positive=None), "No decision"),
        (lambda one: one["decisions"].update(referral="referred"), "Referred to a person"),
        (lambda one: one["decisions"].update(prediction_set=[]), "No class fits"),
        (lambda one: one["decisions"].update(is_point_broken=True), "A guarantee was broken"),
        (lambda one: one.update(decisions=None), "not calibrated"),
        (lambda one: one.update(notes=["alpha was laid on white"]), "Alpha was laid on white."),
    ],
)
def test_each_answer_has_its_words(
    open_page: OpenPage, pictures: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    page = open_page()
    change_answers(page, lambda document: change(document["images"][0]))
    add(page, pictures / "lesion-0.png")
    assert words in page.inner_text("#answer")


def test_many_images_have_progress_and_can_be_cancelled(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page()
    n_asked = [0]

    def hold(route: Any) -> None:
        n_asked[0] += 1
        if n_asked[0] <= 2:
            route.continue_()  # the third waits until it is cancelled

    page.route("**/v1/predict", hold)
    paths = [write_picture(tmp_path / f"{number}.png", seed=number) for number in range(8)]
    page.set_input_files("#image-files", [str(path) for path in paths])
    page.wait_for_selector("#queue-text:has-text('2 of 8 images done')", timeout=60_000)
    assert page.evaluate("document.querySelector('#queue-bar').value") == pytest.approx(0.25)
    page.click("#image-list > li:nth-child(3) .image-remove")  # in flight
    page.wait_for_selector("#queue-text:has-text('2 of 7 images done')")
    page.click("#cancel-all")
    page.wait_for_selector("#queue-progress", state="hidden")
    assert page.locator(".image-item").count() == 2
    assert n_asked[0] <= 5, "what waited was never sent"


def test_the_csv_holds_the_sitting_and_no_formula(open_page: OpenPage, pictures: Path) -> None:
    page = open_page()
    data = (pictures / "lesion-0.png").read_bytes()
    drop(page, [('=1+1,"x".png', data), ("@sum.png", data), ("plain.png", data), ("broken.png", b"nothing")])
    wait_until_done(page, 4)
    with page.expect_download() as download:
        page.click("#export-csv")
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["image"] for row in rows] == ['\'=1+1,"x".png', "'@sum.png", "plain.png", "broken.png"]
    assert all(row["notice"] == NOTICE for row in rows)
    assert sum(float(value) for name, value in rows[0].items() if name.startswith("p_")) == pytest.approx(1)
    assert (
        rows[0]["positive"] in ("yes", "no") and rows[3]["positive"] == "" and rows[3]["refused"] == "not_an_image"
    )
    assert download.value.suggested_filename.endswith(".csv")


def test_the_sitting_is_printed(open_page: OpenPage, pictures: Path, tmp_path: Path) -> None:
    page = open_page()
    add(page, *sorted(pictures.iterdir()))
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".print-image:visible").count() == 4
    assert page.inner_text(".print-notice") == NOTICE
    assert page.locator("main:visible, .bar:visible").count() == 0
    assert "Refused." in page.inner_text(".print-pages")
    assert len(page.pdf()) > 20_000
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".print-image").count() == 0


def test_a_sitting_is_forgotten_when_asked_and_nothing_is_stored(open_page: OpenPage, pictures: Path) -> None:
    page = open_page()
    add(page, pictures / "lesion-0.png", pictures / "lesion-1.png")
    page.click("#clear-sitting")
    page.click("#clear-dialog button[value=cancel]")
    assert page.locator(".image-item").count() == 2
    page.click("#clear-sitting")
    page.click("#clear-dialog button[value=clear]")
    page.wait_for_selector(
        ".image-item", state="detached", timeout=5000
    )  # a dialog says that it was closed a task later
    assert page.locator(".image-item").count() == 0 and page.locator("#answer").is_hidden()
    storage = "[localStorage.length, sessionStorage.length, document.cookie.length]"
    assert page.evaluate(storage) == [0, 0, 0]


def test_the_keyboard_alone_is_enough(open_page: OpenPage, pictures: Path) -> None:
    page = open_page()
    page.on("filechooser", lambda _: None)  # so that the browser asks Playwright from the first file on
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == ["open-model-card", "theme-switch", "choose-images", "choose-folder", "open-camera"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([str(pictures / f"lesion-{number}.png") for number in range(3)])
    wait_until_done(page, 3)
    page.focus(".image-item .image-button")
    page.keyboard.press("ArrowDown")
    assert page.inner_text(".answer-head .counts") == "2 of 3"
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    page.focus("#step-next")
    page.keyboard.press("Enter")
    assert page.inner_text(".answer-head .counts") == "3 of 3"
    assert page.evaluate("document.activeElement.id") == "answer", (
        "the focus is not lost where a button has no use"
    )
    page.focus("#map-toggle")
    page.keyboard.press("Enter")
    page.wait_for_selector("img.map", timeout=120_000)
    assert page.evaluate("document.activeElement.id") == "map-toggle"
    page.focus("#open-model-card")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('#card-dialog').contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-model-card"
    page.focus(".image-item.selected .image-button")
    page.keyboard.press("Delete")
    assert page.locator(".image-item").count() == 2


def test_what_happens_is_said_to_people_who_hear_the_page(open_page: OpenPage, pictures: Path) -> None:
    page = open_page()
    assert page.get_attribute("#announcements", "aria-live") == "polite"
    add(page, pictures / "lesion-0.png")
    assert re.search(r"lesion-0.png: \w+, \d+\.\d %\. (Positive|Negative) at", page.text_content("#announcements"))
    add(page, pictures / "broken.jpg")
    assert re.search(r"broken.jpg: refused\. ", page.text_content("#announcements"))


@pytest.mark.parametrize("viewport", [PHONE, DESK])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    open_page: OpenPage, pictures: Path, viewport: dict[str, int], scheme: str
) -> None:
    page = open_page(viewport=viewport, color_scheme=scheme)
    assert (violations(page), sideways(page, viewport)) == ([], False)
    add(page, *sorted(pictures.iterdir()))
    assert (violations(page), sideways(page, viewport)) == ([], False), "a refused file"
    page.click("#step-next")
    page.click("#map-toggle")
    page.wait_for_selector("img.map", timeout=120_000)
    page.eval_on_selector_all("details", "all => all.forEach((one) => { one.open = true; })")
    assert (violations(page), sideways(page, viewport)) == ([], False), "an answer with its map"
    page.click("#open-model-card")
    assert violations(page) == [], "the model card"
    inside, window = page.evaluate(
        "((one) => [one.scrollWidth, one.clientWidth])(document.querySelector('#card-dialog'))"
    )
    assert inside <= window, "the model card does not scroll sideways"


def violations(page: Any) -> list[str]:
    """Return what axe-core finds on the page: rule, weight, first element."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    return [
        f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]}"
        for one in axe.run(page).response["violations"]
    ]


def sideways(page: Any, viewport: dict[str, int]) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth") > viewport["width"])


def test_dark_is_as_the_system_says_until_the_switch_says_otherwise(open_page: OpenPage) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page = open_page(color_scheme="light")
    light = page.evaluate(ground)
    page.click("#theme-switch")
    dark = page.evaluate(ground)
    assert light != dark and page.get_attribute("#theme-switch", "aria-pressed") == "true"
    other = open_page(color_scheme="dark")
    assert other.evaluate(ground) == dark
    other.click("#theme-switch")
    assert other.evaluate(ground) == light
    other.reload()
    assert other.evaluate(ground) == dark, "nothing is remembered"


def test_nothing_moves_for_people_who_ask_for_that(open_page: OpenPage) -> None:
    moves = """[...document.querySelectorAll('*')]
      .filter((one) => getComputedStyle(one).transitionDuration !== '0s').length"""
    assert open_page(reduced_motion="no-preference").evaluate(moves) > 0
    assert open_page(reduced_motion="reduce").evaluate(moves) == 0


def test_the_notice_stays_in_sight(open_page: OpenPage, pictures: Path) -> None:
    for viewport in (PHONE, DESK):
        page = open_page(viewport=viewport)
        add(page, pictures / "lesion-0.png")
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        box = page.locator(".bar .notice").bounding_box()
        assert box is not None and 0 <= box["y"] < viewport["height"]
        page.click("#open-model-card")
        assert page.locator("#card-dialog .notice").is_visible()


def with_groups(document: dict[str, Any]) -> None:
    """Give a model figures by sex and skin type, one group of them too small."""
    text = "81.2 % (95 % interval 68.1 % to 89.8 %, n = 64)"
    figures = dict.fromkeys(("sensitivity", "specificity", "auroc", "accuracy"), text)
    groups = [
        {"name": "<b>female</b>", "n": 1264, "n_groups": 1200, "n_malignant": 64, "too_few": "", "figures": figures},
        {"name": "male", "n": 4, "n_groups": 4, "n_malignant": 0, "too_few": "0 malignant lesions",
         "figures": {**figures, "sensitivity": "not defined: no malignant images"}},
    ]  # fmt: skip
    document["evaluation"]["subgroups"] = {"sex": groups, "skin_type": groups}


@pytest.mark.parametrize("viewport", [PHONE, DESK])
def test_the_model_card_folds_its_figures_by_group(open_page: OpenPage, viewport: dict[str, int]) -> None:
    page = open_page(viewport=viewport)
    unknown = "#card-body li:has-text('How good it is by')"
    page.click("#open-model-card")
    assert page.locator("#card-body .fold").count() == 0
    assert "by age, sex, skin type, site of the body or camera" in page.inner_text(unknown)
    page = open_page(viewport=viewport, is_ready=False)
    change_answers(page, with_groups, "**/v1/model")
    page.reload()
    page.wait_for_selector("#open-model-card:enabled")
    page.click("#open-model-card")
    assert "by age, site of the body or camera: " in page.inner_text(unknown)
    table = page.get_by_role("group", name="Figures by skin type")
    assert not table.is_visible(), "folded until someone wants it"
    page.focus(".fold > summary")
    page.keyboard.press("Enter")
    assert page.inner_text(".fold > summary") == "By group: sex and skin type"
    assert texts(page, "[aria-label='Figures by sex'] thead th") == [
        "Group", "Sensitivity", "Specificity", "AUROC", "Accuracy",
    ]  # fmt: skip
    assert texts(page, "[aria-label='Figures by sex'] tbody th[scope=row]") == [
        "<b>female</b>1,264 images, 64 malignant", "male4 images, 0 malignant; too few",
    ]  # fmt: skip
    cells = texts(page, "[aria-label='Figures by sex'] tbody tr:first-child td")
    assert cells == 4 * ["81.2 %95 % interval 68.1 % to 89.8 %, n = 64"]
    assert violations(page) == []
    inside, window = page.evaluate(
        "((one) => [one.scrollWidth, one.clientWidth])(document.querySelector('#card-dialog'))"
    )
    assert inside <= window, "the tables scroll in frames of their own"


def test_a_model_that_takes_metadata_is_given_them(open_page: OpenPage, pictures: Path) -> None:
    page = open_page(is_ready=False)
    change_answers(page, lambda document: document.update(metadata_fields=["age", "sex"]), "**/v1/model")
    page.reload()
    page.wait_for_selector("#open-model-card:enabled")
    add(page, pictures / "lesion-0.png")
    page.fill("#metadata-age", "55")
    page.click(".metadata button")
    page.wait_for_selector(".problem")  # the real model takes none, and the server says so
    assert "A value was not accepted" in page.inner_text(".problem")
    assert "metadata" in page.inner_text(".problem .soft")


def test_three_hundred_images_are_scored_and_the_page_stays_quick(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page()
    paths = [write_picture(tmp_path / f"{number:03}.png", seed=number, size=(48, 36)) for number in range(300)]
    page.set_input_files("#image-files", [str(path) for path in paths])
    page.wait_for_selector("#image-list > li:nth-child(300)")
    page.click("#image-list > li:nth-child(2) .image-button")
    assert page.inner_text(".answer-head .counts") == "2 of 300", "images are looked at while others are scored"
    page.wait_for_selector("#queue-progress", state="hidden", timeout=300_000)
    assert "300 images" in page.inner_text("#sitting-counts")
    assert page.locator(".image-item .image-class").count() == 300
