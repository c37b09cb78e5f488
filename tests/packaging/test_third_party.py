"""The list of licences and the SBOM, made from wheels."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import third_party

ROOT = Path(__file__).parents[2]


def wheel(folder: Path, name: str, *lines: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        about = "\n".join(("Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines, "", "License: GPL-9\n"))
        archive.writestr(f"{name}-1.0.dist-info/METADATA", about)
        archive.writestr(f"{name}/vendored-2.0.dist-info/METADATA", "Name: not this one")


def test_licences_are_as_each_package_states_them(tmp_path: Path) -> None:
    wheel(tmp_path, "emdenoised", "License-Expression: Apache-2.0")
    wheel(tmp_path, "Spdx_One", "License-Expression: MIT OR Zlib", "License: something older", "Home-page: http://a")
    wheel(tmp_path, "older", "Classifier: License :: OSI Approved :: BSD License", "Project-URL: Source, http://b, c")
    wheel(tmp_path, "oldest", "License: The X | Y licence", "        and its whole text")
    found = third_party.write(tmp_path, tmp_path)
    page = (tmp_path / third_party.PAGE).read_text()
    assert (
        "| Spdx_One | 1.0 | MIT OR Zlib | http://a |" in page and "| older | 1.0 | BSD License | http://b, c |" in page
    )
    assert "| oldest | 1.0 | The X / Y licence |  |" in page and "| emdenoised |" not in page
    bill = json.loads((tmp_path / third_party.SBOM).read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["licenses"] == [{"expression": "Apache-2.0"}]
    parts = {part["purl"]: part for part in bill["components"]}
    assert parts["pkg:pypi/spdx-one@1.0"]["licenses"] == [{"expression": "MIT OR Zlib"}]
    assert parts["pkg:pypi/older@1.0"]["licenses"] == [{"license": {"name": "BSD License"}}]
    assert {part["hashes"][0]["content"] for part in bill["components"]} == {
        one.sha256 for one in found if one.name != "emdenoised"
    }


def test_a_package_without_a_licence_is_not_passed_on(tmp_path: Path) -> None:
    wheel(tmp_path, "nobodys")
    with pytest.raises(ValueError, match="nobodys: states no licence"):
        third_party.read(tmp_path)


def test_the_documented_packages_are_permissive_but_for_the_reader() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| [\w.]+ \| ([^|]+) \|", (ROOT / "docs/THIRD-PARTY.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    strict = {name for name, licence in rows if re.search(r"GPL|EUPL|MPL|Proprietary|Non-Commercial", licence)}
    assert strict == {"rosettasciio"}
