"""The page's own files: nothing from elsewhere, every key explained, text that can be read."""

import re

from daemon.live_page.routes import SITE


def test_nothing_is_loaded_from_elsewhere_and_no_text_is_read_as_html() -> None:
    files = {path.name: path.read_text() for path in SITE.iterdir()}
    assert {"index.html", "page.css", "page.js", "icon.svg"} <= set(files)
    for name, text in files.items():
        assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"(?:inner|outer|Adjacent)HTML|document\.write|\beval\(|new Function", text), name
    html = files["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", html)
    for name in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert name in files
    for name, text in files.items():
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert imported in files, f"{name} imports {imported}"


def test_every_key_is_in_the_help_and_every_id_the_scripts_look_for_is_there() -> None:
    html = (SITE / "index.html").read_text()
    for path in SITE.glob("*.js"):
        page = (SITE / "login.html").read_text() if path.name == "login.js" else html
        ids = set(re.findall(r'\bid="([^"]+)"', page))
        for wanted in re.findall(r'(?:find|querySelector)\("#([\w-]+)"\)', path.read_text()):
            assert wanted in ids, f"{path.name}: #{wanted}"
    helped = {key.lower() for key in re.findall(r"<kbd>([^<]+)</kbd>", html)}
    keys = re.findall(r"^    (?:\"(.)\"|(\w)): \(\) =>", (SITE / "keys.js").read_text(), re.MULTILINE)
    for key in {one or other for one, other in keys} - {" ", "=", "?", "-"}:
        assert key in helped, key


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_can_be_read_in_a_dark_room() -> None:
    """WCAG AA: at least 4.5 to 1 on every ground; and nothing on the page shines."""
    colours = _colours("dark")
    _require_contrast(colours)
    assert all(_luminance(colours[ground]) < 0.02 for ground in ("ground", "panel", "raised"))
    assert _luminance(colours["text"]) < 0.75


def test_text_can_be_read_in_a_bright_room() -> None:
    colours = _colours("light")
    _require_contrast(colours)
    assert all(_luminance(colours[ground]) > 0.7 for ground in ("ground", "panel", "raised"))


def _colours(theme: str) -> dict[str, str]:
    dark, light = (SITE / "page.css").read_text().split("@media (prefers-color-scheme: light)")
    return dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", dark if theme == "dark" else light))


def _require_contrast(colours: dict[str, str]) -> None:
    for ground in ("ground", "panel", "raised"):
        for text in ("text", "dim", "accent", "good", "check", "reject", "quarantined", "waiting"):
            levels = sorted((_luminance(colours[text]), _luminance(colours[ground])))
            contrast = (levels[1] + 0.05) / (levels[0] + 0.05)
            assert contrast >= 4.5, f"{text} on {ground}: {contrast:.1f}"
