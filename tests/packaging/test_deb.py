"""A Debian package is made of a bundle for this computer only. What is in it, and its life: tests/field/test_deb.py."""

import platform
import sys
from pathlib import Path

import bundle
import deb
import pytest
from pycuda_wheel import BuildError

OTHER = "riscv64"


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (None, "is no unpacked bundle"),
        (f"2.7 {platform.machine()} cpu", "is for Python 2.7; run this with python2.7"),
        (f"{bundle.PYTHON} {OTHER} cpu", f"is for {OTHER}, and this computer is {platform.machine()}"),
    ],
)
def test_a_folder_that_no_package_can_be_made_of_is_refused(tmp_path: Path, stated: str | None, message: str) -> None:
    if stated is not None:
        (tmp_path / "FOR").write_text(stated)
    with pytest.raises(BuildError, match=message):
        deb.make(tmp_path, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bundle_and_package_take_the_same_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(bundle, "make", lambda *options: asked.append(options) or (tmp_path / "FOR"))
    (tmp_path / "FOR").write_text("")
    given = ["--flavour", "tensorrt", "-o", str(tmp_path), "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", ["bundle.py", *given])
    assert bundle.main() == 0 and asked == [("tensorrt", tmp_path, tmp_path / "cache")]
    monkeypatch.setattr(deb.shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["deb.py", *given])
    assert deb.main() == 1 and "dpkg-deb is needed" in capsys.readouterr().err
