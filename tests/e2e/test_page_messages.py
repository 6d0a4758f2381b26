"""What the page says is true, in its own language, and where the user looks for it."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from page_actions import (
    OpenPage,
    PausedRequests,
    choose_examples,
    choose_files,
    expect,
    expect_end,
    needs_chromium,
    open_group,
    respond_with_error,
    submit_job,
)
from PIL import Image

pytestmark = [pytest.mark.e2e, needs_chromium]


def _fake_job(page: Any, job_id: str, **changes: Any) -> None:
    """Change what the service tells about a job."""

    def answer(route: Any) -> None:
        job = route.fetch().json() | changes
        if job["status"] == "queued":
            job["links"].pop("result")
        route.fulfill(json=job)

    page.route(f"**/v1/jobs/{job_id}", answer)
    page.route(f"**/v1/jobs/{job_id}/events", lambda route: route.abort())


@pytest.mark.parametrize(
    ("queue", "english", "chinese"),
    [
        ({"has_worker": True}, "Next in the queue.", "下一个就轮到你。"),
        (
            {"has_worker": False},
            "No worker is running. Your painting starts as soon as one does.",
            "目前没有作画程序在运行，恢复后会自动开始。",
        ),
    ],
    ids=["unknown", "no worker"],
)
def test_a_start_that_is_unknown_is_not_called_a_missing_worker(
    open_page: OpenPage, unusual_job: Any, queue: dict[str, Any], english: str, chinese: str
) -> None:
    page = open_page("/livez", locale="en-US")
    unknown = {"position": 0, "start_seconds": None, "waits_for": None}
    _fake_job(page, unusual_job.id, status="queued", queue=unknown | queue, outputs=[])
    page.goto(f"/j/{unusual_job.id}")

    expect(page.locator("#details")).to_have_text(english)
    page.click("#language")
    expect(page.locator("#details")).to_have_text(chinese)


def test_a_wrong_parameter_is_named_once_in_chinese_and_gets_the_focus(
    open_page: OpenPage,
) -> None:
    page = open_page(width=375, locale="zh-CN")
    choose_examples(page)
    open_group(page, "network")
    with page.expect_response(lambda answer: answer.status == 422):  # of the estimate
        page.fill("#parameter-content_layers", "foo")
    page.locator("#group-network summary").click()
    page.click("#submit-job")

    expect(page.locator("#submit-error")).to_have_text("“内容层（照片）”的值无效，请参照说明修改。")
    expect(page.locator("#parameter-content_layers")).to_be_focused()
    expect(page.locator("#estimate")).to_have_text("")
    field, bar = (
        page.locator(name).bounding_box() for name in ("#parameter-content_layers", ".action-bar")
    )
    assert bar["height"] < 160
    assert field["y"] + field["height"] < bar["y"]
    open_group(page, "areas")
    page.fill("#parameter-content_layers", "relu4_2=1")
    page.fill("#parameter-background", "foo")
    page.click("#submit-job")
    expect(page.locator("#submit-error")).to_have_text("“背景”的值无效，请参照说明修改。")


def test_a_job_that_the_service_would_refuse_is_explained_in_chinese(open_page: OpenPage) -> None:
    refused = {"code": "bad_spec", "message": "Too long.", "reason": "job_too_long"}
    page = open_page("/livez", locale="zh-CN")
    page.route("**/v1/estimate", lambda route: route.fulfill(json={"refused": refused}))
    page.goto("/")
    page.hover("#submit-job")

    expect(page.locator("#estimate")).to_contain_text("用时会超过上限")


def test_the_page_offers_no_webhook_where_the_service_sends_none(open_page: OpenPage) -> None:
    page = open_page()
    open_group(page, "job")

    expect(page.locator("#parameter-deadline_seconds")).to_be_visible()
    expect(page.locator("#parameter-webhook")).to_have_count(0)


def _encode(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


def test_each_of_several_refused_styles_is_named_with_its_reason(open_page: OpenPage) -> None:
    page = open_page(locale="zh-CN")
    expect(page.locator("#presets button").first).to_be_visible()
    contents = {"small": _encode((20, 20)), "long": _encode((2000, 90)), "empty": b""}
    page.set_input_files(
        "#style input.files",
        [
            {"name": f"{name}.png", "mimeType": "image/png", "buffer": content}
            for name, content in contents.items()
        ],
    )
    error = page.locator("#style .error")
    for line in (
        "small.png：图片太小，每边至少 32 像素。",
        "long.png：图片太长，长边不能超过短边的 20 倍。",
        "empty.png：文件是空的。",
    ):
        expect(error).to_contain_text(line)
    assert len(error.inner_text().splitlines()) == 3


def test_a_refused_photo_gives_way_to_one_that_is_not_refused(open_page: OpenPage) -> None:
    page = open_page()
    expect(page.locator("#presets button").first).to_be_visible()
    uploads = PausedRequests(page, "**/v1/images", "POST")
    refuse = respond_with_error("bad_image", "It is damaged.", 422)
    content = _encode((40, 40))
    for i in range(2):
        file = {"name": f"{i}.png", "mimeType": "image/png", "buffer": content}
        page.set_input_files("#photo input.files", file)
        uploads.wait_for(page, i + 1)
    for i, route in enumerate(uploads.routes):
        refuse(route)
        expect(page.locator("#photo .own")).to_have_count(1 - i)
    expect(page.locator("#photo [aria-pressed=true]")).to_have_text("Harbor")


def test_an_unknown_error_is_in_chinese_with_the_services_words_folded(
    open_page: OpenPage,
) -> None:
    page = open_page(locale="zh-CN")
    choose_examples(page)
    page.route("**/v1/jobs", respond_with_error("new_code", "Something new.", 422))
    page.click("#submit-job")

    error = page.locator("#submit-error")
    expect(error).to_contain_text("操作未成功，请重试或联系管理员。")
    assert "Something new." not in error.inner_text()
    error.locator("summary").click()
    assert "Something new." in error.inner_text()


@pytest.mark.parametrize(
    ("width", "size", "words"),
    [(64, 64, "可以接着画。"), (64, 256, "可以接着画到 256\u00a0像素。")],
    ids=["full size", "smaller"],
)
def test_a_painting_that_ended_early_says_how_far_it_can_go(
    open_page: OpenPage, unusual_job: Any, shared_service: Any, width: int, size: int, words: str
) -> None:
    page = open_page("/livez", locale="zh-CN")
    job = shared_service.client.job(unusual_job.id)
    output = {"id": job.outputs[0].id, "width": width, "height": 48}
    job_input = {
        "content": job.input.content, "styles": job.input.styles, "masks": [], "style_masks": [],
        "init_image": None, "spec": job.input.spec | {"size": size},
    }  # fmt: skip
    _fake_job(page, job.id, status="canceled", outputs=[output], input=job_input)
    page.goto(f"/j/{job.id}")

    expect(page.locator("#continue-hint")).to_have_text(re.compile(f"，{words}$"))


def test_an_invalid_field_is_explained_in_the_language_of_the_page(open_page: OpenPage) -> None:
    def message(name: str) -> str:
        field = page.locator(f"#parameter-{name}")
        return str(field.evaluate("(field) => field.validationMessage"))

    page = open_page(locale="en-US")
    page.click("#language")
    choose_examples(page)
    page.select_option("#parameter-size", "other")
    page.fill("#parameter-size-px", "9000")
    page.click("#submit-job")
    assert message("size-px") == "请输入 64 到 8192 之间的整数。"
    page.fill("#parameter-size-px", "")
    page.click("#submit-job")
    assert message("size-px") == "请填写此项。"
    page.select_option("#parameter-size", "256")
    open_group(page, "balance")
    page.fill("#parameter-tv_weight", "-1")
    page.click("#submit-job")
    assert message("tv_weight") == "请输入 0 到 1000000000 之间的数。"

    # Another value, also one that the user has not typed, is not refused any more.
    page.locator("#presets button").first.click()
    page.click("#submit-job")
    page.wait_for_url(re.compile("/j/job_"))
    page.click("#cancel")


@pytest.mark.parametrize("address", ["/", "/operator"])
def test_a_key_of_other_characters_is_explained(open_page: OpenPage, address: str) -> None:
    page = open_page("/livez", locale="zh-CN")
    page.route("**/v1/**", respond_with_error("unauthorized", "Send a key.", 401))
    page.goto(address)
    key = page.locator("#key")
    key.fill("中文密钥")
    page.locator("#key-form .primary").click()
    explanation = key.evaluate("(field) => field.validationMessage")
    assert explanation == "密钥只含英文字母、数字和符号。"
    expect(key).to_have_value("中文密钥")
    key.fill(" impasto_key\u200b")
    page.locator("#key-form .primary").click()
    expect(key).to_have_value("")


def test_tiles_titles_and_files_have_the_names_of_the_pictures(
    open_page: OpenPage, image_files: dict[str, Path], tmp_path: Path
) -> None:
    photo, style = tmp_path / "外滩_夜景.jpg", tmp_path / "mp49.png"
    photo.write_bytes(image_files["rotated.jpg"].read_bytes())
    style.write_bytes(image_files["painting.png"].read_bytes())
    page = open_page(locale="zh-CN")
    assert page.title() == "Impasto · 把照片变成画"
    choose_files(page, photo, style)
    expect(page.locator("#photo .own .name")).to_have_text("外滩 夜景")
    expect(page.locator("#style .own .name")).to_have_text("mp49")
    expect(page.locator("#canvas-title")).to_have_text("外滩 夜景 × mp49")
    submit_job(page)
    expect_end(page, "已完成")
    with page.expect_download() as picture:
        page.click("#download")
    page.evaluate("delete window.MediaRecorder")
    with page.expect_download() as video:
        page.click("#timelapse")

    assert picture.value.suggested_filename == "外滩 夜景 × mp49.png"
    assert re.fullmatch(r"外滩 夜景 × mp49-作画过程\.(mp4|webp)", video.value.suggested_filename)
    page.goto("/j/job_" + "a" * 26)
    expect(page.locator("#status")).to_have_text("找不到这幅画")
    assert page.title() == "找不到这幅画 · Impasto"


@pytest.mark.parametrize(
    ("locale", "heading"), [("zh-CN", "找不到页面"), ("en-US", "Page not")], ids=["zh", "en"]
)
def test_an_unknown_address_answers_in_the_language_of_the_browser(
    open_page: OpenPage, locale: str, heading: str
) -> None:
    page = open_page("/nowhere", locale=locale)

    expect(page.locator("h1")).to_contain_text(heading)
    assert page.evaluate("document.documentElement.lang") == locale.replace("en-US", "en")


def test_compared_paintings_show_their_styles_and_shares_in_words(
    open_page: OpenPage, shared_service: Any, image_files: dict[str, Path]
) -> None:
    client, files = shared_service.client, image_files
    photo, styles = files["rotated.jpg"], [files["painting.png"], files["rotated.jpg"]]
    jobs = [
        client.submit(photo, styles[:count], size=64, iterations=2, scales=1, **shares)
        for count, shares in ((1, {}), (2, {}), (2, {"style_weights": [0.75, 0.25]}))
    ]
    for job in jobs:
        assert client.wait(job.id).status == "succeeded"
    page = open_page(f"/?compare={jobs[0].id},{jobs[1].id}")
    labels = page.locator("#compared th[scope=row]")
    expect(labels).to_have_text(["Painting", "Size", "Style"])
    for image in page.locator("#compared .thumbnails img").all():
        expect(image).not_to_have_js_property("naturalWidth", 0)
    page.goto(f"/?compare={jobs[1].id},{jobs[2].id}")
    expect(labels).to_have_text(["Painting", "Size", "Shares of the styles"])
    cells = page.locator("#compared tr").last.locator("td")
    expect(cells).to_have_text(["50 % + 50 %", "75 % + 25 %"])
    for job in jobs:
        client.delete(job.id)
